"""What commands show of figures: one line without clutter, and all of them where somebody asks for them."""

from __future__ import annotations

from fedless.console.terminal import all_figures, headline

FIGURES = {
    "test_accuracy": 0.778, "test_examples": 500.0, "device_accuracy": 0.84444, "device_accuracy_p10": 0.81,
    "device_accuracy_worst_decile": 0.8, "device_reports": 3.0, "epsilon": 2.0,
}  # fmt: skip


def test_a_line_leaves_out_what_only_says_how_others_spread() -> None:
    assert headline(FIGURES) == "device_accuracy 0.8444, epsilon 2.0000, test_accuracy 0.7780"


def test_all_figures_are_there_and_counts_have_no_fraction() -> None:
    found = dict(all_figures(FIGURES))
    assert found.keys() == FIGURES.keys()
    assert (found["test_examples"], found["device_reports"], found["epsilon"]) == ("500", "3", "2.0000")
    assert found["device_accuracy_worst_decile"] == "0.8000"
