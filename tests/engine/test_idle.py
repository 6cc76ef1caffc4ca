"""A session that nobody calls leaves the CPUs to others."""

from __future__ import annotations

import time

import gpt_oss_native as gon
import numpy as np
import pytest
from reference.engine_support import directory, random_tokens

GREEDY = gon.Sampling(temperature=0)
SECONDS = 1.0
# One worker that spins is a whole CPU, or on a crowded machine a good part of one. What remains is
# the test's own: the clock of the system counts in hundredths of a second.
MOST_CPU_SECONDS = 0.1


def cpu_seconds_asleep() -> float:
    """Of all threads of this process while this one sleeps."""
    before = time.process_time()
    time.sleep(SECONDS)
    return time.process_time() - before


@pytest.mark.parametrize("threads", [2, 4])
def test_workers_of_an_idle_session_use_no_cpu(threads: int, rng: np.random.Generator) -> None:
    before = cpu_seconds_asleep()  # of what other tests may have left behind
    with (
        gon.Model.load(directory(), device="cpu", num_threads=threads) as model,
        model.session() as session,
    ):
        session.forward(random_tokens(rng, 40))
        generation = session.generate((), GREEDY, max_new_tokens=20)
        for _ in range(10):  # and one that is not at its end
            next(generation)
        assert cpu_seconds_asleep() - before < MOST_CPU_SECONDS
        assert len(list(generation)) == 10  # the workers wake up again
