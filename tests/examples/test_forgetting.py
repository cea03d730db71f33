"""The task of the demo's second part, checked against its stream symbol by symbol."""

import functools
import json
import re
import signal
import subprocess
import sys
import time

import forgetting
import pytest
import torch
from forgetting import FILLERS, KEYS, PAIR_SHARE, QUESTION_SHARE, RECENT, VALUES


@pytest.fixture(scope="module")
def rows():
    """Returns (symbols, answers, kinds) of each row, read in blocks of several lengths."""
    stream = forgetting.PairStream(3, seed=5)
    blocks = [stream.read(length) for length in (64, 1, 500, 1500)]
    return [[torch.cat([block[part][row] for block in blocks]).tolist() for part in range(3)] for row in range(3)]


def test_answers_are_the_last_values_of_the_keys(rows):
    for symbols, answers, kinds in rows:
        values, pairs, asked = {}, [], set()
        for symbol, answer, kind in zip(symbols, answers, kinds):
            if symbol < FILLERS:
                assert (kind, answer) == (forgetting.FILLER, -1)
            elif symbol < FILLERS + KEYS * VALUES:
                key, value = divmod(symbol - FILLERS, VALUES)
                assert (kind, answer) == (forgetting.PAIR, -1) and key == len(pairs) % KEYS
                pairs.append(key)
                values[key] = value
            else:
                key = symbol - FILLERS - KEYS * VALUES
                assert (kind, answer) == (forgetting.QUESTION, values[key])
                asked.add(pairs[::-1].index(key))
        assert asked == set(range(RECENT))


def test_shares(rows):
    kinds = torch.tensor([row[2] for row in rows])
    assert (kinds == forgetting.PAIR).double().mean().item() == pytest.approx(PAIR_SHARE, abs=0.01)
    assert (kinds == forgetting.QUESTION).double().mean().item() == pytest.approx(QUESTION_SHARE, abs=0.015)


def test_a_seed_gives_one_stream():
    one, same, other = (forgetting.PairStream(2, seed).read(200).symbols for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_task_is_learnt(monkeypatch):
    """With questions about the last two keys only, a model is better than guessing within seconds."""
    monkeypatch.setattr(forgetting, "RECENT", 2)
    torch.manual_seed(0)
    model = forgetting.Answerer(span=48, expire=False)
    forgetting.train("fixed span", model, updates=150)
    assert forgetting.test(model, blocks=20).right > 0.35


def test_all_three(tmp_path, capsys):
    path = tmp_path / "results.json"
    forgetting.main(["--updates", "3", "--json", str(path)])
    results = {key: forgetting.Result(**values) for key, values in json.loads(path.read_text()).items()}
    assert results["far"].memory_size == forgetting.LONGEST
    assert results["near"].memory_size == round(results["expire"].memory_size) < forgetting.LONGEST
    assert results["near"].spans == [[results["near"].memory_size] * 3] * 2
    # Spans are still close to their start after few updates.
    assert all(
        span == pytest.approx(forgetting.LONGEST / 2, rel=0.3) for layer in results["expire"].spans for span in layer
    )
    printed = forgetting.report(results)
    assert printed in capsys.readouterr().out
    assert re.search(rf"Expire-Span, up to {forgetting.LONGEST} steps \| +{results['expire'].right:.1%} \|", printed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_it_is_stopped(number):
    command = [sys.executable, forgetting.__file__, "--updates", "100000"]
    # A shell lets its background jobs ignore SIGINT, and so would all that they start.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed
    ) as process:
        try:
            assert "update 50 of 100000" in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(timeout=60) == 130
            end = time.monotonic() + 60
            while subprocess.run(["pgrep", "--session", str(process.pid)], stdout=subprocess.DEVNULL).returncode == 0:
                assert time.monotonic() < end
                time.sleep(0.2)
        finally:
            subprocess.run(["pkill", "-KILL", "--session", str(process.pid)])


def test_the_report_names_kinds():
    result = forgetting.Result(right=1.0, memory_size=2.0, spans=[[1.0, 200.0, 3.4]])
    printed = forgetting.report({"near": result, "far": result, "expire": result})
    assert re.search(r"steps +\| +fillers \| +pairs \| +questions\n", printed)
    assert re.search(r"layer 1 +\| +1 \| +200 \| +3\n", printed)
