"""Windows fix the order of a run: from any position, what comes is the rest of the whole."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layertap.config.extract import ExtractConfig
from layertap.core.columns import SIDES, TEST
from layertap.core.records import BadTask, Conversation, Document, Record, TokenList
from layertap.dataset import read_records
from layertap.errors import BadTaskError, DamageError, ModelError, OverlongError, PromptError, RunMismatchError
from layertap.model.checkpoint import open_checkpoint
from layertap.pipeline.hosts import Hosts
from layertap.pipeline.inputs import prompt_maker, window_rules
from layertap.pipeline.packing import row_ladder
from layertap.pipeline.windows import Position, Window, WindowRules, read_windows
from layertap.prompts import MOST_PARTS, PromptMaker, SplitRules, load_template, load_tokenizer, parse_grid_encoder

RULES = WindowRules(
    window_samples=6,
    ladder=row_ladder(1024, 4096),
    batch_size=2,
    longest=4096,
    overlong="error",
    on_bad_task="error",
    machine_id=0,
    total_machines=1,
)


@pytest.fixture(scope="module")
def maker(tiny_model: Path) -> PromptMaker:
    encoder = parse_grid_encoder("MinimalGridEncoder()")
    template = load_template("output-from-examples-v1", None)
    return PromptMaker(load_tokenizer(tiny_model), template, encoder, 3, include_answer=False, seed=1)


def windows(maker: PromptMaker, path: Path, start: Position = Position(), rules: WindowRules = RULES) -> list[Window]:  # noqa: B008
    return list(read_windows(read_records(str(path)), maker, rules, start))


def order(window: Window) -> list[int]:
    """The numbers of a window's samples, as they are emitted."""
    return [window.samples[place.sample].sample_idx for step in window.steps for place in step.placements]


def test_windows_hold_every_sample_in_turn(maker: PromptMaker, demo_tasks: Path) -> None:
    found = windows(maker, demo_tasks)
    assert len(found) > 3
    assert [index for window in found for index in sorted(order(window))] == list(range(found[-1].end.sample_idx))
    assert all(len(window.samples) >= 6 for window in found[:-1])


@pytest.mark.whole
def test_from_any_position_the_rest_is_the_same(maker: PromptMaker, demo_tasks: Path) -> None:
    whole = windows(maker, demo_tasks)
    for number, window in enumerate(whole):
        for emitted in range(1, len(window.samples) + 1):
            start = Position.from_json(window.position(emitted).to_json())
            rest = windows(maker, demo_tasks, start)
            assert [order(part) for part in rest] == [order(part) for part in whole[number:]]
            assert rest[0].start.emitted == emitted
            assert all(part.start.emitted == 0 for part in rest[1:])


def test_records_behind_the_position_may_change_and_those_before_may_not(
    maker: PromptMaker, demo_tasks: Path, tmp_path: Path
) -> None:
    whole = windows(maker, demo_tasks)
    lines = demo_tasks.read_text().splitlines()
    changed = tmp_path / "changed.jsonl"
    last_of_second = whole[1].end.record - 1
    lines[last_of_second], lines[-1] = lines[-1], lines[last_of_second]
    changed.write_text("\n".join(lines))
    assert windows(maker, changed, whole[0].position(len(whole[0].samples)))
    assert windows(maker, changed, whole[0].end)
    for start in (whole[1].position(1), whole[1].end, whole[2].position(2)):
        with pytest.raises(RunMismatchError, match="not those that were extracted here"):
            windows(maker, changed, start)


def test_a_dataset_that_shrank_is_refused(maker: PromptMaker, demo_tasks: Path, tmp_path: Path) -> None:
    end = windows(maker, demo_tasks)[-1].end
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("\n".join(demo_tasks.read_text().splitlines()[:-1]))
    with pytest.raises(RunMismatchError, match=r"extracted here; give the same dataset, or another --output_dir$"):
        windows(maker, shorter, end)


def test_machines_number_samples_alike(maker: PromptMaker, demo_tasks: Path) -> None:
    whole = {sample.sample_idx: sample for window in windows(maker, demo_tasks) for sample in window.samples}
    shares = [
        sample
        for machine in range(4)
        for window in windows(maker, demo_tasks, rules=replace(RULES, machine_id=machine, total_machines=4))
        for sample in window.samples
    ]
    assert sorted(sample.sample_idx for sample in shares) == sorted(whole)
    assert all(np.array_equal(it.token_ids, whole[it.sample_idx].token_ids) for it in shares)


def test_a_machine_without_tasks_reaches_the_end(maker: PromptMaker, demo_tasks: Path) -> None:
    (window,) = windows(maker, demo_tasks, rules=replace(RULES, machine_id=50, total_machines=99))
    assert not window.samples
    assert window.end.record == len(demo_tasks.read_text().splitlines())


def test_a_damaged_position_is_refused() -> None:
    with pytest.raises(DamageError, match="emitted"):
        Position.from_json({name: value for name, value in Position().to_json().items() if name != "emitted"})


TEXTS = [Document(f"text {number}", "one two three " * (number + 1)) for number in range(5)]


def read(maker: PromptMaker, records: list[Record], **rules: Any) -> list[Window]:
    return list(read_windows(iter(records), maker, replace(RULES, **rules), Position()))


@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 5, 7])
def test_a_window_ends_with_the_record_that_fills_it(maker: PromptMaker, demo_tasks: Path, wanted: int) -> None:
    records = [*read_records(str(demo_tasks)), *TEXTS]
    found = read(maker, records, window_samples=wanted)
    for window in found[:-1]:
        last = maker.count(records[window.end.record - 1])
        assert len(window.samples) - last < wanted <= len(window.samples)
    assert found[-1].end.record == len(records)


def test_the_digest_is_of_the_tasks_as_compact_json(maker: PromptMaker) -> None:
    """It is in manifests, and must be the same in the next release."""
    (window,) = read(maker, TEXTS[:2])
    text = '{"task_id":"text 0","text":"one two three "}{"task_id":"text 1","text":"one two three one two three "}'
    assert window.end.digest == hashlib.sha256(text.encode()).hexdigest()
    assert window.start == Position()


def test_numbers_begin_where_the_part_of_the_dataset_does(maker: PromptMaker) -> None:
    (window,) = read(maker, TEXTS[:2], first_sample_idx=40)
    assert [sample.sample_idx for sample in window.samples] == [40, 41]
    assert window.end.sample_idx == 42


def test_rows_are_for_all_devices(maker: PromptMaker) -> None:
    (window,) = read(maker, TEXTS, batch_size=1, devices=2)
    assert [step.rows for step in window.steps] == [2]
    (window,) = read(maker, TEXTS, batch_size=1)
    assert [step.rows for step in window.steps] == [1]


def test_a_sample_that_is_too_long_is_refused_left_out_or_cut(maker: PromptMaker) -> None:
    lengths = [len(sample.token_ids) for sample in read(maker, TEXTS)[0].samples]
    assert lengths == sorted(set(lengths))
    with pytest.raises(
        OverlongError, match=f"task text 4, sample 4: {lengths[4]} tokens, but .* is {lengths[3]}; raise"
    ):
        read(maker, TEXTS, longest=lengths[3])
    (window,) = read(maker, TEXTS, longest=lengths[3], overlong="skip")
    assert [sample.sample_idx for sample in window.samples] == [0, 1, 2, 3]
    entry = {"sample_idx": 4, "task_id": "text 4", "tokens": lengths[4], "action": "skipped"}
    assert window.end.overlong_samples == (entry,)
    (window,) = read(maker, TEXTS, longest=lengths[3], overlong="truncate")
    assert [len(sample.token_ids) for sample in window.samples] == [*lengths[:4], lengths[3]]
    assert window.end.overlong_samples == ({**entry, "action": "truncated"},)


def test_overlong_samples_before_the_position_stay_listed(maker: PromptMaker) -> None:
    lengths = [len(sample.token_ids) for sample in read(maker, TEXTS)[0].samples]
    rules: dict[str, Any] = {"window_samples": 2, "longest": lengths[1], "overlong": "skip"}
    whole = read(maker, TEXTS, **rules)
    assert [window.end.overlong_before for window in whole] == [0, 2, 3]
    for number, window in enumerate(whole):
        start = replace(window.start, overlong_samples=whole[-1].end.overlong_samples)
        rest = list(read_windows(iter(TEXTS), maker, replace(RULES, **rules), start))
        assert [part.end for part in rest] == [part.end for part in whole[number:]]


def test_a_record_that_is_no_task_is_refused_or_listed_by_its_own_machine(maker: PromptMaker) -> None:
    bad = BadTask("file, line 2", "b", "no grid")
    records = [TEXTS[0], bad, TEXTS[1]]
    with pytest.raises(BadTaskError, match=r"file, line 2.* no grid\. Repair it"):
        read(maker, records)
    (window,) = read(maker, records, on_bad_task="skip")
    assert [sample.sample_idx for sample in window.samples] == [0, 1]
    assert window.end.skipped_tasks == ({"where": "file, line 2", "task_id": "b", "reason": "no grid"},)
    assert window.end.record == 3
    (other,) = read(maker, records, on_bad_task="skip", total_machines=2)
    assert other.end.skipped_tasks == ()


def test_a_position_in_a_window_has_what_the_window_left_out(maker: PromptMaker) -> None:
    records = [BadTask("line 1", None, "no grid"), *TEXTS]
    (window,) = read(maker, records, on_bad_task="skip", overlong="truncate", longest=8)
    position = window.position(2)
    assert position.skipped_tasks == window.end.skipped_tasks != ()
    assert position.overlong_samples == window.end.overlong_samples != ()
    assert (position.emitted, position.window_digest, position.record) == (2, window.end.digest, 0)
    assert Position.from_json(position.to_json()) == position
    assert position.to_json()["skipped_tasks"] == {"count": 1, "list": list(window.end.skipped_tasks)}


@pytest.mark.slow
def test_nearly_all_computed_tokens_are_real_at_default_settings(shared_data: Path) -> None:
    """97 % on ARC-AGI-1 training, five million tokens, nothing left out (docs/LOG.md)."""
    config = ExtractConfig(dataset_path=str(shared_data / "arc-agi-1" / "training.jsonl"))
    maker = PromptMaker(
        load_tokenizer(shared_data / "qwen2.5-tokenizer"),
        load_template(config.prompt_version, None),
        parse_grid_encoder(config.grid_encoder),
        config.predictions_per_task,
        include_answer=config.include_answer,
        seed=config.random_seed,
    )
    found = list(read_windows(read_records(config.dataset_path), maker, window_rules(config, Hosts(), 1), Position()))
    steps = [step for window in found for step in window.steps]
    real = sum(place.length for step in steps for place in step.placements)
    assert real == sum(len(sample.token_ids) for window in found for sample in window.samples)
    assert found[-1].end.sample_idx == sum(len(step.placements) for step in steps) == 3328
    assert real >= 0.97 * sum(step.computed_tokens for step in steps)
    assert len({(step.rows, step.length) for step in steps}) <= 4


def test_a_record_that_the_model_refuses_is_skipped_and_keeps_its_number(maker: PromptMaker) -> None:
    records = [TokenList("good", (1, 2)), TokenList("far", (1, 10**6)), Document("text", "one two")]
    with pytest.raises(BadTaskError, match=r"record 2, task 'far': .*token 1000000 is not in the model's vocabulary"):
        read(maker, records)
    (window,) = read(maker, records, on_bad_task="skip")
    assert [(sample.sample_idx, sample.task_id) for sample in window.samples] == [(0, "good"), (2, "text")]
    assert [entry["where"] for entry in window.end.skipped_tasks] == ["record 2"]


def test_a_text_with_a_token_that_the_embedding_lacks_is_a_bad_record(maker: PromptMaker) -> None:
    """Gemma 3's tokenizer has a token for an image, its smallest model no row for it."""
    rows = maker.tokenizer.vocab_size - 1
    assert rows >= maker.tokenizer.ordinary_size
    (last,) = maker.tokenizer.added_beyond(rows)
    small = replace(maker, vocabulary=rows)
    asked = Conversation("asked", ({"role": "user", "content": f"see {last}"},))
    records = [Document("good", "one"), Document("bad", f"two {last}"), asked, Document("text", "three")]
    message = rf"record 2, task 'bad': .*token {rows} \('{last}'\) is not in the model's vocabulary of {rows}"
    with pytest.raises(BadTaskError, match=message):
        read(small, records)
    (window,) = read(small, records, on_bad_task="skip")
    assert [sample.task_id for sample in window.samples] == ["good", "text"]
    with pytest.raises(PromptError, match=rf"'bad': token {rows}"):
        small.make([(0, records[1])])


def test_a_tokenizer_whose_words_the_embedding_lacks_is_of_another_model(config: ExtractConfig) -> None:
    checkpoint = open_checkpoint(config.model_path)
    tokenizer = load_tokenizer(checkpoint.folder)

    def maker_for(rows: int) -> PromptMaker:
        return prompt_maker(config, replace(checkpoint, config=replace(checkpoint.config, vocab_size=rows)))

    assert maker_for(tokenizer.ordinary_size).vocabulary == tokenizer.ordinary_size < tokenizer.vocab_size
    with pytest.raises(ModelError, match="belong to different models"):
        maker_for(tokenizer.ordinary_size - 1)


@pytest.mark.parametrize("answer", [True, False])
def test_the_question_of_an_arc_prompt_is_never_cut(maker: PromptMaker, demo_tasks: Path, answer: bool) -> None:
    asking = replace(maker, include_answer=answer, predictions_per_task=1)
    (task, *_) = [record for record in read_records(str(demo_tasks)) if not isinstance(record, BadTask)]
    (sample,) = asking.make([(0, task)])[:1]
    is_answer = (sample.columns["example"] == TEST) & (sample.columns["side"] == SIDES.index("output"))
    begins = int(np.flatnonzero(is_answer)[0]) if answer else sample.tokens
    for longest in (begins - 1, sample.tokens - 1):
        if answer and longest >= begins:
            (window,) = read(asking, [task], longest=longest, overlong="truncate")
            assert window.samples[0].tokens == longest
        else:
            with pytest.raises(OverlongError, match="would cut its question off; raise --max_seq_length, show fewer"):
                read(asking, [task], longest=longest, overlong="truncate")
    with pytest.raises(OverlongError, match="an ARC prompt is not split"):
        read(replace(asking, split=SplitRules(50)), [task], longest=50, overlong="split")


def test_long_texts_are_split_into_contexts_that_go_on_where_the_one_before_ended(maker: PromptMaker) -> None:
    text = "one two three four five " * 40
    (whole,) = maker.make([(0, Document("a", text))])
    for length, overlap in ((16, 0), (16, 5), (64, 63), (10**4, 0)):
        splitting = replace(maker, split=SplitRules(length, overlap))
        records = [Document("a", text), TokenList("b", tuple(whole.token_ids.tolist()))]
        (window,) = read(splitting, records, longest=length, overlong="split", window_samples=10**6)
        for number, record in enumerate(records):
            parts = [sample for sample in window.samples if sample.task_id == record.task_id]
            assert [part.sample_idx for part in parts] == [number * MOST_PARTS + at for at in range(len(parts))]
            assert max(part.tokens for part in parts) <= length
            joined = [token for part in parts for token in part.token_ids[overlap if part.origin["part"] else 0 :]]
            assert joined == whole.token_ids.tolist()
            starts = [part.origin["start"] for part in parts]
            assert all(
                part.token_ids.tolist() == whole.token_ids[start : start + part.tokens].tolist()
                for part, start in zip(parts, starts, strict=True)
            )
            assert {part.origin["parts"] for part in parts} == {len(parts)}
