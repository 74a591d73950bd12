"""The input sample of each row."""

from __future__ import annotations

import random

from npstream.writing.resumption.positions import InputTracker


def test_positions_of_outputs():
    """Samples with no, one or several outputs, of which some are left out."""
    for seed in range(60):
        draw = random.Random(seed)
        max_outputs, number, outputs = draw.choice([1, 2, 4]), draw.randrange(5), draw.randrange(3)
        tracker = InputTracker(7, number, (0, 0))
        # A reject is the input sample and the output, then the count and the bytes of rejects.
        positions, rejects = [], [((-1, 0), (0, 0))]
        while len(positions) < 50:
            for output in range(outputs, draw.randrange(max_outputs + 1)):
                if seed % 2:  # a sample is refused before or after its output is recorded
                    tracker.add_output(7 + len(positions), number, output)
                if draw.random() < 0.1:
                    rejects.append(((number, output), (len(rejects), 9 * len(rejects))))
                    tracker.add_reject(number, output, rejects[-1][1])
                else:
                    if not seed % 2:
                        tracker.add_output(7 + len(positions), number, output)
                    positions.append((number, output))
            number, outputs = number + 1, 0
        for row in sorted(draw.sample(range(50), 9)):
            assert tracker.position(7 + row) == positions[row]
            last_reject = max(reject for reject in rejects if reject[0] < positions[row])
            assert tracker.rejected_before(positions[row]) == last_reject[1]


def test_samples_in_a_row_are_one_run():
    tracker = InputTracker(0, 0, (0, 0))
    for row in range(1000):
        tracker.add_output(row, row, 0)
    assert len(tracker._runs) == 1
    for output in range(1000):
        tracker.add_output(1000 + output, 2000, output)
    assert len(tracker._runs) == 2
    assert [tracker.position(row) for row in (999, 1500)] == [(999, 0), (2000, 500)]


def test_positions_of_batches_and_of_samples_that_are_left_out():
    tracker = InputTracker(0, 0, (0, 0))
    tracker.add_batch(0, [0, 0, 2], [0, 1, 0])
    tracker.add_batch(3, [3], [0])
    assert [tracker.position(row) for row in (0, 2, 3)] == [(0, 0), (2, 0), (3, 0)]
    tracker = InputTracker(0, 0, (0, 0))
    tracker.add_reject(2, 0, (1, 10))
    tracker.skip(2, 3)
    tracker.add_reject(3, 0, (2, 20))
    tracker.skip(2, 4)
    assert [tracker.position(row) for row in (1, 2, 3)] == [(1, 0), (4, 0), (5, 0)]
    assert tracker.rejected_before((1, 0)) == (0, 0)
    assert tracker.rejected_before((4, 0)) == (2, 20)
