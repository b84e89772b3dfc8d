"""The compiler's report on buffers, read by hand-made files that are as its own."""

import re
from pathlib import Path

import ringrl
from ringrl.planner.hlo_sources import Sources
from ringrl.planner.memory import _KINDS, Buffer, Memory, kinds_of, read_memory

M = 2**20
USAGE = f"""Memory Space: default (color=0)
Total bytes: {8 * M} (8.00MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list

Memory Space: host (color=5)
Total bytes: {3 * M} (3.00MiB)
"""
ASSIGNMENT = f"""BufferAssignment:
allocation 0: size {M}, parameter 0, shape |f32[512,512]| at ShapeIndex {{}}:
 value: <1 p.1 @0> (size={M},offset=0): f32[512,512]{{1,0:T(8,128)}}
allocation 1: size {6 * M}, preallocated-temp:
 value: <2 early @0> (size={4 * M},offset=0): f32[1024,1024]{{1,0:T(8,128)}}
 value: <3 loop{{1}} (phi) @0> (size={2 * M},offset=0): bf16[4,512,512]{{1,0:T(8,128)}}
 value: <4 made @0> (size={2 * M},offset=0): bf16[4,512,512]{{1,0:T(8,128)}}
 value: <5 late @0> (size={3 * M},offset={2 * M}): f32[768,1024]{{1,0:T(8,128)}}
 value: <6 tiny @0> (size=512,offset={5 * M}): s32[]{{:T(128)}}
allocation 2: size {M}, color 1, preallocated-temp:
 value: <7 near @1> (size={M},offset=0): f32[512,512]{{1,0:T(8,128)S(1)}}
"""
LIVES = """HloLiveRange (max 9):
  BufferLiveRange:
    early{}:0-2
    made{}:3-4
    loop{1}:5-8
    late{}:6-8
    tiny{}:6-8
    near{}:1-9
  Live ranges at 6 (peak):
    early{}: 1 bytes
"""
PROGRAM = """HloModule step, is_scheduled=true

FileNames
1 "/home/someone/ringrl/training/state.py"
2 "/home/someone/ringrl/ringrl/model/layer.py"

FunctionNames
1 "train_step"
2 "Layer.output_and_mlp"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=5 end_line=5 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

ENTRY %main (p.1: f32[512,512]) -> f32[768,1024] {
  %made = bf16[4,512,512]{1,0:T(8,128)} fusion(%p.1), kind=kLoop, metadata={op_name="jit(f)/add" stack_frame_id=2}
  %copy = bf16[4,512,512]{1,0:T(8,128)} copy(%made), backend_config={}
  %late = f32[768,1024]{1,0:T(8,128)} add(%copy), metadata={op_name="jit(f)/add" stack_frame_id=1}
  %start = (f32[8]{0}, u32[]) copy-start(%copy), backend_config={}
}
"""


def test_the_buffers_of_the_fullest_moment(tmp_path):
    reports = {"-memory-usage-report": USAGE, "-buffer-assignment": ASSIGNMENT, "-live-range": LIVES, "": PROGRAM}
    for end, text in reports.items():
        (tmp_path / f"module_0000.jit_step.cl_1.after_optimizations{end}.txt").write_text(text)
    memory = read_memory(tmp_path)
    assert memory is not None and (memory.hbm, memory.host) == (8 * M, 3 * M)
    # `early` is gone when `late` comes. What the loop passes on was made by `made`, which was at the same offset.
    assert memory.temporaries == (
        Buffer(3 * M, "f32[768,1024]", ("ringrl/training/state.py:train_step",)),
        Buffer(
            2 * M,
            "bf16[4,512,512]",
            ("ringrl/model/layer.py:Layer.output_and_mlp", "ringrl/training/state.py:train_step"),
        ),
    )
    assert memory.temporaries[0].card() == {
        "bytes": 3 * M,
        "shape": "f32[768,1024]",
        "made_by": "ringrl/training/state.py:train_step",
    }


def test_no_report_no_memory(tmp_path):
    assert read_memory(tmp_path) is None


def test_an_instruction_of_the_compilers_comes_from_where_its_operand_does():
    sources = Sources(PROGRAM)
    assert sources.of("copy") == sources.of("made") == sources.of("start")
    assert sources.of("unheard-of") == () and sources.of("p.1") == ()


def test_the_names_that_kinds_are_found_by_exist():
    """Of a class, function or file that was renamed, buffers would count as `other`."""
    root = Path(ringrl.__file__).parent
    known = {"ringrl", "py", "optax"} | {path.stem for path in root.rglob("*")}
    for path in (root / "model").glob("*.py"):
        known |= set(re.findall(r"(?:def|class) (\w+)", path.read_text()))
    assert set(re.findall(r"\w+", " ".join(pattern for pattern, _ in _KINDS))) <= known


def test_kinds_add_up():
    def buffer(shape, *made_by, size=M):
        return Buffer(size, shape, made_by)

    temporaries = (
        buffer("f32[2,8,8]", "ringrl/attention/ring.py:f"),  # as large as a layer's matrices: their gradient
        buffer("bf16[2,1,64,8]", "ringrl/model/transformer.py:Transformer._features"),
        buffer("bf16[64,8]", "flax/nnx/nn/linear.py:Linear.__call__", "ringrl/model/layer.py:OutputAndMLP.__call__"),
        buffer("bf16[64,8]", "ringrl/attention/kernels/tpu.py:forward", "ringrl/model/layer.py:Layer.output_and_mlp"),
        buffer("bf16[8,8]", "somewhere/else.py:f"),
    )
    memory = Memory(8 * M, 0, temporaries)
    kinds = kinds_of(memory, {"parameters": 2 * M}, layers=2, gradients={(2, 8, 8)})
    assert sum(kinds.values()) == memory.hbm and next(iter(kinds)) == "parameters"
    one_each = {"gradients", "kept for the backward pass", "feed-forward", "attention", "other"}
    assert {kind for kind, size in kinds.items() if size == M} == one_each | {"gaps and small buffers"}
