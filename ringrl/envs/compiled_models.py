"""MuJoCo models that are compiled once a process: of a small task, compiling takes 40 ms of the 50 that loading takes.

An evaluation makes dozens of environments of one task, each with a model of its own. A copy of a compiled model is the
same bits in less than a millisecond.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dm_control.mujoco.wrapper import core

_MOST = 8
_models: OrderedDict[Any, Any] = OrderedDict()


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within it, dm_control gets a copy of a model that was compiled before from the same XML and assets."""
    compile_model = core._get_model_ptr_from_xml

    def load(xml_path: Any = None, xml_string: Any = None, assets: Mapping[str, Any] | None = None) -> Any:
        if xml_string is None:
            return compile_model(xml_path=xml_path, assets=assets)
        return _copy_of(lambda: compile_model(xml_string=xml_string, assets=assets), (xml_string, assets or {}))

    core._get_model_ptr_from_xml = load
    try:
        yield
    finally:
        core._get_model_ptr_from_xml = compile_model


def _copy_of(compile_model: Callable[[], Any], source: tuple[Any, Mapping[str, Any]]) -> Any:
    xml, assets = source
    key = (xml, tuple(sorted(assets.items())))
    if key not in _models:
        _models[key] = compile_model()
        if len(_models) > _MOST:
            _models.popitem(last=False)
    _models.move_to_end(key)
    return copy.copy(_models[key])
