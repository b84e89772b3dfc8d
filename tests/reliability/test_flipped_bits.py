"""A few of the flipped bits of `python -m benchmarks.faults`: none changes a number silently."""

from benchmarks._faults_flipped import run_flipped


def test_no_flipped_bit_changes_a_number_silently(capsys):
    assert run_flipped(24, seed=1) == {"flipped": 24, "silently_wrong": 0, "flipped_untyped": 0}
    assert "checkpoint" in capsys.readouterr().out
