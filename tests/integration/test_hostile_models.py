"""Model files that kill whatever loads them, as `make fuzz` found them, next to a sound one."""

from __future__ import annotations

from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "fuzz" / "corpus" / "models"
KILLERS = sorted(CORPUS.glob("*.tflite"))


@pytest.mark.parametrize("how", ["sigsegv", "sigabrt"])
async def test_a_model_that_kills_its_process_is_refused_and_the_others_serve(
    serve, configure, program, digits, how
):
    killer = next(file for file in KILLERS if file.stem.startswith(how))
    serving = await serve(configure(models={"hostile": {"path": str(killer)}}))
    assert serving.daemon.local.refused == {
        "hostile": f"model 'hostile': {killer} kills the interpreter"
    }
    status, text, _ = await serving.get("/readyz")
    assert (status, "kills the interpreter" in text) == (503, True)
    await program.submit("digits", digits.job("good"))
    assert digits.read(await program.answer("good")) == "3"
