"""The schema of a batch, and the one rule of the step before, on rows that a reader can check."""

import numpy as np

from ringrl.batch import BATCH_SCHEMA, PREVIOUS, link_previous, previous_in_trial, same_trial

SIZES = {"observation": 3, "action": 2}


def test_the_schema_is_read_off_the_annotations():
    shapes = {name: field.shape((4, 7), SIZES) for name, field in BATCH_SCHEMA.items()}
    assert shapes["observation"] == (4, 7, 3) and shapes["previous_action"] == shapes["action"] == (4, 7, 2)
    assert {shapes[name] for name in set(shapes) - {"observation", "action", "previous_action"}} == {(4, 7)}
    integers = {name for name, field in BATCH_SCHEMA.items() if field.dtype == np.int32}
    assert integers == {"step", "trial", "position", "segment_ids"}
    assert {field.dtype for name, field in BATCH_SCHEMA.items() if name not in integers} == {np.dtype(np.float32)}
    assert PREVIOUS == {name: f"previous_{name}" for name in ("action", "reward", "completion")}


def test_the_step_before_is_of_the_same_trial():
    ids = np.array([[1, 1, 1, 1, 2, 2, 0], [0, 0, 1, 1, 1, 1, 1]], np.int32)
    trial = np.array([[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]], np.int32)
    step = np.array([[0, 1, 0, 1, 0, 1, 0], [0, 0, 4, 5, 6, 7, 8]], np.int32)  # the last trial begins in its midst
    same = same_trial({"segment_ids": ids, "trial": trial, "step": step})
    assert same.astype(int).tolist() == [[0, 1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 0, 1]]
    x = np.arange(1, 15, dtype=np.float32).reshape(2, 7)
    assert previous_in_trial(x, same).tolist() == [[0, 1, 0, 3, 0, 5, 0], [0, 0, 0, 10, 11, 0, 13]]
    wide = previous_in_trial(np.stack([x, -x], axis=2), same)
    assert wide[0, :, 1].tolist() == [0, -1, 0, -3, 0, -5, 0]


def test_linking_adds_what_the_schema_names():
    steps = {name: np.ones(BATCH_SCHEMA[name].shape((1, 3), SIZES), np.float32) for name in PREVIOUS}
    numbers = {"segment_ids": np.ones((1, 3), np.int32), "trial": np.zeros((1, 3), np.int32)}
    numbers["step"] = np.arange(3, dtype=np.int32)[None]
    linked = link_previous(steps | numbers)
    assert set(linked) == {*PREVIOUS, *PREVIOUS.values(), *numbers}
    assert linked["previous_action"][0, :, 0].tolist() == [0, 1, 1]
