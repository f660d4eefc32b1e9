"""Labels and confidence of a classifier's answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import ConfigError, Model
from agent.routes import labels
from agent.wire import tensors

NAMES = ("ant", "bee", "cat")


def scores(*values, dtype=np.float32, name="y"):
    return tensors.from_array(name, np.array([values], dtype))


def listed(tensor):
    return json.loads(bytes(tensors.to_json(tensor)))


def attached(output, top_k=3):
    outputs, confidence = labels.attach((output,), NAMES, top_k)
    _, label, sureness = outputs
    return listed(label), listed(sureness), confidence


def test_probabilities_are_taken_as_they_are_best_first():
    words, numbers, confidence = attached(scores(0.25, 0.125, 0.625))
    assert words == ["cat", "ant", "bee"]
    assert numbers == [0.625, 0.25, 0.125]
    assert confidence == 0.625


def test_logits_go_through_softmax():
    words, numbers, confidence = attached(scores(0.0, 2.0, -1000.0))
    assert words == ["bee", "ant", "cat"]
    assert confidence == pytest.approx(1 / (1 + np.exp(-2)))
    assert sum(numbers) == pytest.approx(1)


def test_only_the_best_k_are_named():
    assert attached(scores(0.2, 0.3, 0.5), top_k=2)[0] == ["cat", "bee"]
    assert attached(scores(0.2, 0.3, 0.5), top_k=9)[0] == ["cat", "bee", "ant"]


def test_equal_scores_keep_the_labels_order():
    assert attached(scores(0.25, 0.5, 0.25))[0] == ["bee", "ant", "cat"]


def test_integer_scores_are_logits_too():
    assert attached(scores(1, 9, 3, dtype=np.int32))[0] == ["bee", "cat", "ant"]


def test_the_first_output_with_a_number_for_each_label_counts():
    outputs = (tensors.strings("s", NAMES), scores(1, 2), scores(0, 0, 1), scores(1, 0, 0))
    added, confidence = labels.attach(outputs, NAMES, 1)
    assert added[:4] == outputs
    assert [output.name for output in added[4:]] == ["label", "confidence"]
    assert (listed(added[4]), confidence) == (["cat"], 1.0)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (scores(1, 2), NAMES),
        (scores(1, 2, 3), ()),
        (tensors.strings("y", NAMES), NAMES),
        (scores(1, np.nan, 3), NAMES),
        (scores(1, np.inf, 3), NAMES),
    ],
)
def test_an_answer_without_a_finite_score_for_each_label_stays_as_it_is(output, names):
    assert labels.attach((output,), names, 3) == ((output,), None)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_confidence_is_a_ratio_whatever_the_scores(values):
    names = [str(number) for number in range(len(values))]
    _, confidence = labels.attach((scores(*values),), names, 3)
    assert 0 <= confidence <= 1.05


def test_labels_are_a_list_or_a_file_with_one_a_line(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_text("ant\nbeé\n", encoding="utf-8")
    assert labels.read("m", Model(labels=str(file))) == ("ant", "beé")
    assert labels.read("m", Model(labels=("x",))) == ("x",)
    assert labels.read("m", Model()) == ()


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_labels_that_can_not_be_read_are_a_config_error_that_names_the_key(tmp_path, content):
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        labels.read("m", Model(labels=str(file)))
    assert (caught.value.where, caught.value.key) == (str(file), "models.m.labels")
