import pytest

from layertap.errors import PromptError
from layertap.prompts.sandbox import chat_environment, compile_template, prompt_environment

_ENVIRONMENTS = [prompt_environment, chat_environment]


def _render(environment, source, **values):
    return compile_template(environment(), source, "my.j2").render(**values)


@pytest.mark.parametrize("environment", _ENVIRONMENTS)
def test_block_tags_leave_no_blank_lines(environment):
    source = "a\n  {% if yes %}\n b\n  {% endif %}\nc\n"
    assert _render(environment, source, yes=True) == "a\n b\nc"


@pytest.mark.parametrize("environment", _ENVIRONMENTS)
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("fine\n{% if %}", "my.j2, line 2: "),
        ("fine\n\n{{ 1 | nofilter }}", "my.j2, line 3: .*nofilter"),
        ("fine\n{{ 1 / 0 }}", "my.j2, line 2: .*zero"),
        ("fine\n{{ 'a' + 1 }}", "my.j2, line 2: "),
        ("fine\n{{ missing.attribute }}", "my.j2, line 2: 'missing' is undefined"),
        ("{% for x in [1] %}\n{{ ''.__class__.mro() }}\n{% endfor %}", "my.j2, line 2: .*unsafe"),
        ("{% set x = [] %}{{ x.append(1) }}", "my.j2, line 1: .*append"),
        ("{% include 'other.j2' %}", "my.j2, line 1: .*loader"),
    ],
)
def test_errors_name_file_and_line(environment, source, message):
    with pytest.raises(PromptError, match=f"^{message}"):
        _render(environment, source)


@pytest.mark.parametrize("environment", _ENVIRONMENTS)
@pytest.mark.parametrize("source", ["{{ [1, 2] | random }}", "{{ lipsum() }}", "{{ strftime_now('%Y') }}"])
def test_what_changes_between_renderings_does_not_exist(environment, source):
    with pytest.raises(PromptError, match=r"my\.j2, line 1: "):
        _render(environment, source)


def test_a_defect_of_ours_is_not_blamed_on_the_template():
    def fails():
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        _render(prompt_environment, "{{ value() }}", value=fails)


def test_variables_are_those_the_template_does_not_set():
    template = compile_template(prompt_environment(), "{% set a = b %}{{ a }}{{ c.d }}", "my.j2")
    assert template.variables == {"b", "c"}


def test_prompts_do_not_forgive_missing_names():
    with pytest.raises(PromptError, match="'answer' is undefined"):
        _render(prompt_environment, "{{ answer }}")


def test_chats_forgive_missing_names():
    assert _render(chat_environment, "{{ bos_token }}x{% if tools %}y{% endif %}") == "x"


def test_chats_write_json_without_escapes():
    assert _render(chat_environment, "{{ value | tojson }}", value={"a": "<é>"}) == '{"a": "<é>"}'


def test_chats_may_leave_loops_and_mark_generations():
    leave = "{% if n == 3 %}{% break %}{% endif %}"
    source = "{% for n in [1, 2, 3] %}" + leave + "{% generation %}{{ n }}{% endgeneration %}{% endfor %}"
    assert _render(chat_environment, source) == "12"


def test_chats_may_refuse_a_conversation():
    with pytest.raises(PromptError, match=r"my\.j2, line 2: no system messages here"):
        _render(chat_environment, "\n{{ raise_exception('no system messages here') }}")
