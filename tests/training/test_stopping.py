"""Two real processes, of which one is asked to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from ringrl.config import dump_config

STEPS = 100_000


def test_a_signal_to_one_stops_all_after_the_same_step(tiny_config, tmp_path):
    training = {"steps": STEPS, "batch": 2, "row_steps": 12, "checkpoint_every": STEPS}
    agent = {"name": "behavior_cloning", "window": 12}
    config = tiny_config(agent, mesh={"data": 2}, model={"remat": "none"}, training=training)
    (tmp_path / "c.yaml").write_text(dump_config(config))
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "ringrl.cli", "train", str(tmp_path / "c.yaml"), "--out", str(run)]
    command += ["--coordinator", address, "--processes", "2", "--process"]
    env = os.environ | {"RINGRL_CPU_DEVICES": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    group = [subprocess.Popen([*command, str(index)], env=env, **pipes) for index in range(2)]
    try:
        deadline = time.monotonic() + 500
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_bytes():
            assert all(process.poll() is None for process in group) and time.monotonic() < deadline
            time.sleep(0.05)
        group[1].send_signal(signal.SIGTERM)
        printed = [process.communicate(timeout=200) for process in group]
    finally:
        for process in group:
            process.kill()
            process.communicate()
    assert [process.returncode for process in group] == [143, 143], printed
    kept = [int(path.name) for path in (run / "checkpoints").iterdir()]
    assert len(kept) == 1 and f"stopped after step {kept[0]} of {STEPS}, which is kept" in printed[0][1], printed
    assert "SIGTERM: finishing this step" in printed[1][1] and "stopped after" not in printed[1][1]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, kept[0] + 1))
