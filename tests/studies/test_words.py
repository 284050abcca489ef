"""Names of columns, metrics and methods in the words of pages and figures."""

import pytest

from dlprobe.metrics import PROTOCOLS
from dlprobe.studies.displays import column_words, method_words, metric_words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("iou@patch", "IoU"),
        ("false_area_promised@px", "falsely marked share, at the promised threshold"),
        ("iou_own@patch", "IoU, against what the scheme taught"),
        ("dlprobe@0.5.original_px.iou_macro", "IoU, mean over images, protocol dlprobe@0.5"),
        ("imdlbenco.input_px.f1", "F1, protocol imdlbenco, on the pixels that the model was given"),
        (
            "dlprobe.original_px.oracle_best_f1_macro (oracle)",
            "best F1, mean over images, oracle, protocol dlprobe",
        ),
        ("f1@input_px", "F1, on the pixels that the model was given"),
        ("safire.original_px.best_f1 (oracle)", "best F1, protocol safire, oracle"),
    ],
)
def test_a_metric_is_told_in_words(name, words):
    assert metric_words(name) == words


def test_metrics_of_every_protocol_are_told_apart_and_without_underscores():
    for protocol in PROTOCOLS:
        own = PROTOCOLS[protocol]
        words = [metric_words(f"{protocol}.{own.grid}.{metric}") for metric in own.averages]
        assert len(set(words)) == len(words)
        assert not [word for word in words if "_" in word]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("n_sources", "photographs"),
        ("p_holm", "p after Holm"),
        ("everything", "marking everything"),
        ("ap_val", "average precision, at the threshold of validation"),
        ("slope_of_something", "slope of something"),
        ("autoencoded-pristine", "autoencoded-pristine"),
        ("file:/a/w.v1.pth: dice three-class", "file:/a/w.v1.pth: dice three-class"),
        ("timm:vit_base.x@336: fake_own", "timm:vit_base.x@336: fake_own"),
        ("my_own", "my own"),
        ("setting", "setting"),
    ],
)
def test_a_column_is_told_in_words(name, words):
    assert column_words(name) == words


def test_marking_everything_is_called_so_wherever_it_is_compared_with():
    assert method_words("everything") == "marking everything"
    assert method_words("dice - everything") == "dice - marking everything"
    assert method_words("predict everything") == "predict everything"
