"""The real commands: a supervisor, a launcher, and trainer processes that are killed."""

from __future__ import annotations

import psutil
import pytest
import torch

from support.processes import Command, last_step
from support.together import assert_close, metrics, weights

pytestmark = pytest.mark.slow

EPOCHS = 3


def test_a_killed_rank_of_a_real_run_recovers_and_nothing_listens_off_loopback(site, tmp_path):
    """The result is that of one process, so also that of an undisturbed run."""
    options = {"epochs": EPOCHS, "bind": "tcp://127.0.0.1:*", "expect_devices": 1}
    alone, run = site.run("alone", **options), site.run("run", ranks=2, **options)
    site.train(alone)
    with Command(["sf-server", "train", "--run", run, "--resume"], tmp_path / "server.log") as server:
        server.wait_until(lambda: last_step(run) >= 6, "step 6")
        family = psutil.Process(server.process.pid).children(recursive=True)
        ranks = [process for process in family if "sf_server.training.process" in process.cmdline()]
        assert {process.environ()["LOCAL_RANK"] for process in ranks} == {"0", "1"}
        listening = [
            connection.laddr.ip
            for process in family
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}
        next(process for process in ranks if process.environ()["LOCAL_RANK"] == "1").kill()
        server.finish()
    assert "rank 1" in server.tail()
    assert "started again" in server.tail()
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(alone)]
    assert_close(weights(run), weights(alone))
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())
