import pytest
from tokenizers import Tokenizer

from layertap.errors import PromptError
from layertap.prompts.chat import Chat
from layertap.prompts.grids import MinimalGridEncoder, parse_grid_encoder
from layertap.prompts.templates import PROMPT_VERSIONS, load_template

_DEFAULT_ENCODER = parse_grid_encoder("GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))")


@pytest.fixture
def write_folder(tmp_path):
    """Write a folder with a user's own templates. It has no file for a text that is None."""

    def write(system="be brief", user="{{ examples[0].input }}>{{ test_input }}", assistant="={{ answer }}"):
        for name, text in (("system", system), ("user", user), ("assistant", assistant)):
            if text is not None:
                (tmp_path / f"{name}.j2").write_text(text, encoding="utf-8")
        return str(tmp_path)

    return write


_SHOWN = """## Example 1

### Input
```grid shape: 2x2
1 01
2 23
```

### Output
```grid shape: 2x2
1 32
2 10
```

## Example 2

### Input
```grid shape: 1x3
1 456
```

### Output
```grid shape: 1x3
1 654
```

## Test case

### Input
```grid shape: 2x1
1 7
2 8
```"""


@pytest.mark.parametrize("version", PROMPT_VERSIONS)
def test_a_prompt_shows_the_examples_the_test_input_and_its_output_where_that_is_wanted(version, two_tests):
    template = load_template(version)
    asked = template.render(two_tests, 0, _DEFAULT_ENCODER, include_answer=False)
    answered = template.render(two_tests, 0, _DEFAULT_ENCODER, include_answer=True)
    system, user = asked.messages
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert user["content"][user["content"].index("## Example 1") :] == _SHOWN
    assert asked.opening == "### Output\n"
    output = {"role": "assistant", "content": "### Output\n```grid shape: 2x1\n1 8\n2 7\n```"}
    assert answered == Chat((system, user, output))


def test_an_unknown_answer_is_left_out(two_tests):
    template = load_template()
    wanted = template.render(two_tests, 1, _DEFAULT_ENCODER, include_answer=True)
    assert wanted == template.render(two_tests, 1, _DEFAULT_ENCODER, include_answer=False)


@pytest.mark.parametrize(("version", "fewest", "most"), [(PROMPT_VERSIONS[0], 250, 300), (PROMPT_VERSIONS[1], 70, 90)])
def test_length_of_the_instruction(version, fewest, most, two_tests, qwen_folder):
    user = load_template(version).render(two_tests, 0, _DEFAULT_ENCODER, include_answer=False).messages[1]["content"]
    tokenizer = Tokenizer.from_file(str(qwen_folder / "tokenizer.json"))
    assert fewest <= len(tokenizer.encode(user[: user.index("## Example 1")]).ids) <= most


def test_a_folder_of_ones_own(write_folder, two_tests):
    template = load_template(folder=write_folder())
    turns = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "01\n23>7\n8"},
        {"role": "assistant", "content": "=8\n7"},
    )
    assert template.render(two_tests, 0, MinimalGridEncoder(), include_answer=True) == Chat(turns)
    assert template.version == "custom"


def test_the_system_message_may_be_empty_and_text_after_the_answer_is_no_part_of_the_opening(write_folder, two_tests):
    template = load_template(folder=write_folder(system="", assistant="<{{ answer }}>done"))
    conversation = template.render(two_tests, 0, MinimalGridEncoder(), include_answer=False)
    assert conversation.messages[0] == {"role": "system", "content": ""}
    assert conversation.opening == "<"


@pytest.mark.parametrize("name", ["system", "user", "assistant"])
@pytest.mark.parametrize(("text", "complaint"), [(None, ": no such file"), ("a\n{% if %}", ", line 2")])
def test_a_missing_file_and_a_syntax_error_are_named(name, text, complaint, write_folder):
    with pytest.raises(PromptError, match=f"{name}.j2{complaint}"):
        load_template(folder=write_folder(**{name: text}))


@pytest.mark.parametrize(
    ("changed", "include_answer", "complaint"),
    [
        ({"user": "a\n{{ examples[7].input }}"}, False, r"user\.j2, line 2"),
        ({"user": "{{ answer }}"}, True, r"user\.j2, line 1: 'answer' is undefined"),
        ({"assistant": "### Output"}, True, r"assistant\.j2: never uses {{ answer }}"),
        ({"assistant": "{{ answer | length }}"}, False, r"assistant\.j2: changes {{ answer }}"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(changed, include_answer, complaint, write_folder, two_tests):
    with pytest.raises(PromptError, match=complaint):
        load_template(folder=write_folder(**changed)).render(two_tests, 0, MinimalGridEncoder(), include_answer)


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
