"""The tables of docs/options.md are those that the code gives."""

import importlib.util

import doc_pages


def load(name):
    """A script of docs as a module."""
    spec = importlib.util.spec_from_file_location(name, doc_pages.ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_up_to_date():
    script = load("generate_options")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.generate(page) == page, "write it anew: python docs/generate_options.py"


def test_the_picture_is_that_of_the_stored_measurement():
    script = load("draw_spans")
    measured = script.json.loads(script.MEASUREMENT.read_text(encoding="utf-8"))
    assert script.draw(measured) == script.PICTURE.read_text(encoding="utf-8"), (
        "draw it anew: python docs/draw_spans.py"
    )
