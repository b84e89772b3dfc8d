"""Which OpenGL backend MuJoCo and dm_control may use. Both bind one when they are imported, which is done here."""

import ctypes
import importlib
import os
import sys

from ringrl.errors import UserError

_EGL_PLATFORM_DEVICE_EXT = 0x313F


def bind_backend() -> None:
    """Choose the backend, and import MuJoCo and dm_control, which bind it. `ringrl.envs` begins with this.

    Raises:
        UserError: `MUJOCO_GL` names a backend that does not work here, or none at all.
    """
    choose_backend()
    try:
        for name in ("mujoco", "dm_control.mujoco"):
            importlib.import_module(name)
    except ModuleNotFoundError:
        raise
    except (AttributeError, ImportError, OSError, RuntimeError) as error:  # of PyOpenGL, GLFW, dm_control
        reason = " ".join(str(error).split())
        raise UserError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} ({reason}): unset it, or set "
            "it to egl, or to disabled, as only films, pictures and quadruped_escape need a renderer"
        ) from error


def choose_backend() -> None:
    """Set `MUJOCO_GL` on a machine without a display: to EGL where that works, else to no rendering at all.

    Left alone: a `MUJOCO_GL` that is set, and every machine with a display or another operating system. Without this,
    dm_control tries GLFW first, which warns that there is no display, and a chosen but broken EGL fails the import.
    """
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    usable = os.environ.get("PYOPENGL_PLATFORM", "egl") == "egl" and has_egl()
    os.environ["MUJOCO_GL"] = "egl" if usable else "disabled"


def has_egl() -> bool:
    """Whether some device gives a headless EGL display: what dm_control's renderer asks for, asked through ctypes."""
    try:
        library = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    library.eglGetProcAddress.restype = ctypes.c_void_p
    query_devices = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    get_display = library.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_devices or not get_display:
        return False
    pointer = ctypes.c_void_p
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.POINTER(pointer), ctypes.POINTER(ctypes.c_int))
    display_of = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(get_display)
    devices, count = (pointer * 16)(), ctypes.c_int(0)
    if not query(query_devices)(len(devices), devices, ctypes.byref(count)):
        return False
    library.eglInitialize.argtypes = [pointer, pointer, pointer]
    for device in devices[: count.value]:
        display = display_of(_EGL_PLATFORM_DEVICE_EXT, device, None)
        # Never terminated: the display of a device is one for the whole process, and dm_control may be using it.
        if display and library.eglInitialize(display, None, None):
            return True
    return False
