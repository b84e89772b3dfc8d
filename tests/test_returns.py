"""Tables of returns: what is read, what is refused, and in which words."""

from pathlib import Path

import numpy as np
import pytest

from ringrl.errors import UserError
from ringrl.returns import TrialReturn, format_returns, read_returns

HEADER = "agent,task,seed,env,trial,return,length,target_return"  # of tables without demonstrations


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "returns.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_are_read_with_empty_and_nan_targets(tmp_path):
    path = table(tmp_path, HEADER, "at,walker_run,0,1,2,3.5,1000,9", "bc,walker_run,0,1,2,4,1000,", "x,t,0,0,0,1,5,nan")
    rows = read_returns(path)
    assert (rows[0].agent, rows[0].env, rows[0].trial, rows[0].return_, rows[0].target_return) == ("at", 1, 2, 3.5, 9.0)
    assert np.isnan([rows[1].target_return, rows[2].target_return]).all()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["agent,task"], "line 1: the columns are"),
        ([HEADER], "has no rows"),
        ([HEADER, "a,t,0,0,0,1,5"], "line 2: 7 cells where 8"),
        ([HEADER, "a,t,0,0,0,1,5,", "a,t,0,0,one,1,5,"], "line 3: trial is 'one', which is not a whole number"),
        ([HEADER, "a,t,0,0,0,much,5,"], "line 2: return is 'much', which is not a number"),
        ([HEADER, "a,t,0,0,0,,5,"], "line 2: return is ''"),
        ([HEADER, "a,t,0,0,0,inf,5,"], "not finite"),
        ([HEADER, ",t,0,0,0,1,5,"], "must have names"),
        ([HEADER, "a,t,0,0,0,1,5,", "a,t,0,0,0,2,5,"], "line 3: a, seed 0, env 0, trial 0 is already on line 2"),
    ],
)
def test_malformed_tables_are_refused_with_the_line(tmp_path, lines, words):
    with pytest.raises(UserError, match="returns.csv") as caught:
        read_returns(table(tmp_path, *lines))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "returns.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="line 1: is not text in UTF-8"):
        read_returns(tmp_path / "returns.csv")


def test_what_is_written_is_read_back(tmp_path):
    rows = [
        TrialReturn("AT, two", "t", 0, 1, 2, 0.1 + 0.2, 22, 1 / 3, demonstrations=16),
        TrialReturn("a", "t", 0, 1, 2, 4.0, 22, np.nan),
    ]
    (tmp_path / "returns.csv").write_bytes(format_returns(rows))
    first, second = read_returns(tmp_path / "returns.csv")
    assert first == rows[0] and np.isnan(second.target_return) and second.demonstrations == 0


def test_tables_have_their_number_of_demonstrations_and_older_ones_none(tmp_path):
    (old,) = read_returns(table(tmp_path, HEADER, "a,t,0,0,0,1,5,"))
    (new,) = read_returns(table(tmp_path, f"{HEADER},demonstrations", "a,t,0,0,0,1,5,,16"))
    assert (old.demonstrations, new.demonstrations) == (0, 16)
    with pytest.raises(UserError, match=r"line 2: demonstrations is '', which is not a whole number"):
        read_returns(table(tmp_path, f"{HEADER},demonstrations", "a,t,0,0,0,1,5,,"))


def test_a_sweep_repeats_trials_for_each_value(tmp_path):
    lines = [f"{HEADER},demonstrations", "a,t,0,0,0,1,5,,0", "a,t,0,0,0,2,5,,4"]
    assert [row.demonstrations for row in read_returns(table(tmp_path, *lines), "demonstrations")] == [0, 4]
    with pytest.raises(UserError, match="line 3: .* is already on line 2"):
        read_returns(table(tmp_path, *lines))
    with pytest.raises(UserError, match="line 4: .* is already on line 3"):
        read_returns(table(tmp_path, *lines, lines[-1]), "demonstrations")
