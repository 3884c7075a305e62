"""Comments of YAML files belong to the keys that a reader would give them to."""

from __future__ import annotations

from recpipe.config.comments import head_comment, key_comments

TEXT = """\
# Training.
# When to use: always.
train:
  window: null              # last events; null: all
  loss: {name: bce, t: 1}   # of a step,
                            # in one more line
  # shapes: constant
  # or cosine
  schedule: {name: constant}
  text: "a # in quotes"     # a text
  long: >-
    lines # of text
    and more
  list: [1, 2]
  inner:                    # a block
    key: &anchor {a: 1}     # with an anchor
"""


def test_a_comment_beside_a_key_explains_it():
    comments = key_comments(TEXT)
    assert comments["train.window"] == "last events; null: all"
    assert comments["train.inner"] == "a block"
    assert comments["train.inner.key"] == "with an anchor"


def test_lines_at_the_same_column_continue_a_comment():
    assert key_comments(TEXT)["train.loss"] == "of a step, in one more line"


def test_lines_above_a_key_explain_it_where_nothing_stands_beside_it():
    assert key_comments(TEXT)["train.schedule"] == "shapes: constant or cosine"
    assert key_comments(TEXT)["train"] == "Training. When to use: always."


def test_signs_inside_of_values_are_no_comments():
    comments = key_comments(TEXT)
    assert comments["train.text"] == "a text"
    assert "train.long" not in comments
    assert "train.list" not in comments


def test_the_head_of_a_file_is_read_line_by_line():
    assert head_comment(TEXT) == "Training.\nWhen to use: always."
    assert head_comment("a: 1\n# later") == ""


def test_an_empty_file_has_no_comments():
    assert key_comments("# only a comment\n") == {}
