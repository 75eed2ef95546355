import pytest
from tokenizers import Tokenizer

from layertap.errors import PromptError
from layertap.prompts import PROMPT_VERSIONS, Messages, MinimalGridEncoder, load_template, parse_grid_encoder

_DEFAULT_ENCODER = parse_grid_encoder("GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))")


@pytest.fixture
def write_folder(tmp_path):
    """Write a user's own template folder; a None leaves that file out."""

    def write(system="be brief", user="{{ examples[0].input }}>{{ test_input }}", assistant="={{ answer }}"):
        for name, text in (("system", system), ("user", user), ("assistant", assistant)):
            if text is not None:
                (tmp_path / f"{name}.j2").write_text(text, encoding="utf-8")
        return str(tmp_path)

    return write


def _sections(user):
    """Everything after the instruction."""
    return user[user.index("## Example 1") :]


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_user_message_shows_the_examples_and_the_test_input(version, two_tests):
    messages = load_template(version).render(two_tests, 0, _DEFAULT_ENCODER, include_answer=False)
    assert _sections(messages.user) == (
        "## Example 1\n\n"
        "### Input\n```grid shape: 2x2\n1 01\n2 23\n```\n\n"
        "### Output\n```grid shape: 2x2\n1 32\n2 10\n```\n\n"
        "## Example 2\n\n"
        "### Input\n```grid shape: 1x3\n1 456\n```\n\n"
        "### Output\n```grid shape: 1x3\n1 654\n```\n\n"
        "## Test case\n\n"
        "### Input\n```grid shape: 2x1\n1 7\n2 8\n```"
    )


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_assistant_message_is_the_output_under_its_heading(version, two_tests):
    messages = load_template(version).render(two_tests, 0, _DEFAULT_ENCODER, include_answer=True)
    assert messages.complete
    assert messages.assistant == "### Output\n```grid shape: 2x1\n1 8\n2 7\n```"


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_without_the_answer_the_assistant_only_opens_its_turn(version, two_tests):
    messages = load_template(version).render(two_tests, 0, _DEFAULT_ENCODER, include_answer=False)
    assert not messages.complete
    assert messages.assistant == "### Output\n"


def test_an_unknown_answer_is_left_out(two_tests):
    template = load_template()
    wanted = template.render(two_tests, 1, _DEFAULT_ENCODER, include_answer=True)
    assert wanted == template.render(two_tests, 1, _DEFAULT_ENCODER, include_answer=False)


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_system_message_is_always_given(version, two_tests):
    messages = load_template(version).render(two_tests, 0, _DEFAULT_ENCODER, include_answer=False)
    assert messages.system == "You are a helpful assistant."


@pytest.mark.parametrize(("version", "fewest", "most"), [(PROMPT_VERSIONS[0], 250, 300), (PROMPT_VERSIONS[1], 70, 90)])
def test_length_of_the_instruction(version, fewest, most, two_tests, qwen_folder):
    user = load_template(version).render(two_tests, 0, _DEFAULT_ENCODER, include_answer=False).user
    tokenizer = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    assert fewest <= len(tokenizer.encode(user[: user.index("## Example 1")]).ids) <= most


def test_a_folder_of_ones_own(write_folder, two_tests):
    template = load_template(folder=write_folder())
    expected = Messages("be brief", "01\n23>7\n8", "=8\n7", complete=True)
    assert template.render(two_tests, 0, MinimalGridEncoder(), include_answer=True) == expected
    assert template.version == "custom"


def test_the_system_message_may_be_empty(write_folder, two_tests):
    template = load_template(folder=write_folder(system=""))
    assert template.render(two_tests, 0, MinimalGridEncoder(), include_answer=True).system == ""


def test_text_after_the_answer_is_no_part_of_the_opening(write_folder, two_tests):
    template = load_template(folder=write_folder(assistant="<{{ answer }}>done"))
    assert template.render(two_tests, 0, MinimalGridEncoder(), include_answer=False).assistant == "<"


@pytest.mark.parametrize("missing", ["system", "user", "assistant"])
def test_a_missing_file_is_named(missing, write_folder):
    with pytest.raises(PromptError, match=f"{missing}.j2: no such file"):
        load_template(folder=write_folder(**{missing: None}))


@pytest.mark.parametrize("name", ["system", "user", "assistant"])
def test_syntax_errors_name_file_and_line(name, write_folder):
    with pytest.raises(PromptError, match=f"{name}.j2, line 2"):
        load_template(folder=write_folder(**{name: "a\n{% if %}"}))


def test_failures_name_file_and_line(write_folder, two_tests):
    template = load_template(folder=write_folder(user="a\n{{ examples[7].input }}"))
    with pytest.raises(PromptError, match=r"user\.j2, line 2"):
        template.render(two_tests, 0, MinimalGridEncoder(), include_answer=False)


def test_only_the_assistant_sees_the_answer(write_folder, two_tests):
    template = load_template(folder=write_folder(user="{{ answer }}"))
    with pytest.raises(PromptError, match=r"user\.j2, line 1: 'answer' is undefined"):
        template.render(two_tests, 0, MinimalGridEncoder(), include_answer=True)


def test_an_assistant_file_without_the_answer_is_refused(write_folder):
    with pytest.raises(PromptError, match=r"assistant\.j2: never uses {{ answer }}"):
        load_template(folder=write_folder(assistant="### Output"))


def test_an_answer_that_cannot_be_cut_off_is_refused(write_folder, two_tests):
    template = load_template(folder=write_folder(assistant="{{ answer | length }}"))
    with pytest.raises(PromptError, match=r"does not write {{ answer }} as it is"):
        template.render(two_tests, 0, MinimalGridEncoder(), include_answer=False)


def test_an_unknown_version_is_refused():
    with pytest.raises(PromptError, match=r"did you mean output-from-examples-v1\?"):
        load_template("output-from-example-v1")


def test_digest_follows_every_file(write_folder):
    changes = [{}, {"system": "x"}, {"user": "x"}, {"assistant": "x{{ answer }}"}]
    digests = [load_template(folder=write_folder(**change)).digest for change in changes]
    assert len(set(digests)) == len(changes)


def test_digest_does_not_follow_line_ends(tmp_path):
    digests = set()
    for line_end in (b"\n", b"\r\n"):
        for name in ("system", "user", "assistant"):
            (tmp_path / f"{name}.j2").write_bytes(b"a" + line_end + b"{{ answer }}")
        digests.add(load_template(folder=str(tmp_path)).digest)
    assert len(digests) == 1
