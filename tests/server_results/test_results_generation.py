"""Completing prompts: the same tokens as the merged model alone, however they are computed."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from sf_contract.manifest import Task
from sf_contract.tokenizer import open_tokenizer
from sf_model.back import BackEnd
from sf_model.checkpoint import load_model, open_checkpoint
from sf_server.main import main
from sf_server.results.generation import (
    Choosing,
    Completion,
    Ending,
    Generator,
    StopReason,
    choose_token,
    complete,
)
from sf_server.results.merge_command import write_merged
from sf_server.results.text_front import FrontKind, open_text_front
from sf_server.results.trained import TrainedModel
from sf_server.training.batch_tensors import decode_to_tensor
from support.tiny_models import DECODERS, HIDDEN
from support.tolerances import CACHED_STEPS

NEW_TOKENS = 8


def _generator(pieces, kind):
    bundle = pieces.bundle
    return Generator(
        open_text_front(pieces, kind, bundle),
        TrainedModel(pieces).back_end(bundle),
        device=pieces.device,
        max_tokens=48,
    )


def _tokens(generator, prompt, new_tokens=NEW_TOKENS):
    found = list(generator.tokens(prompt, Ending(max_new_tokens=new_tokens)))
    assert found[-1] is StopReason.MAX_NEW_TOKENS
    return found[:-1]


@pytest.fixture(scope="session")
def merged_folder(completing_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged") / "model"
    write_merged(completing_run, out, dtype=torch.float32)
    return out


@pytest.fixture(scope="session")
def prompts(completing_run, texts):
    tokenizer = open_tokenizer(completing_run.bundle)
    return [tokenizer.encode(text, special_tokens=True, max_tokens=None) for text in texts]


def test_with_the_fp32_front_end_the_tokens_are_those_of_the_merged_model_alone(completing_run, merged_folder, prompts):
    merged = AutoModelForCausalLM.from_pretrained(merged_folder)
    generator = _generator(completing_run, FrontKind.FP32)
    assert generator.is_cached
    answers = set()
    for prompt in prompts:
        whole = merged.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        found = _tokens(generator, prompt)
        assert found == whole[0, len(prompt) :].tolist()
        answers.add(tuple(found))
    assert len(answers) > 10, "the prompts hardly matter"


def test_with_the_bundles_front_end_the_tokens_are_those_of_the_merged_model_with_the_same_front_end(
    completing_run, merged_folder, prompts
):
    """The other way has no cache and no adapter: the merged model, entered with all rows anew for each token."""
    bundle = completing_run.bundle
    merged = BackEnd(AutoModelForCausalLM.from_pretrained(merged_folder).eval(), bundle.manifest.geometry.split_layer)
    rows_of = open_text_front(completing_run, FrontKind.BUNDLE, bundle)
    generator = _generator(completing_run, FrontKind.BUNDLE)
    for prompt in prompts:
        token_ids = list(prompt)
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                logits = merged(*merged.pad([decode_to_tensor(rows_of(token_ids))]))
                token_ids.append(int(logits[0, -1].argmax()))
        assert _tokens(generator, prompt) == token_ids[len(prompt) :]


@pytest.mark.parametrize("family", DECODERS)
def test_going_on_from_kept_keys_and_values_gives_what_running_everything_gives(tiny_model, family):
    checkpoint = open_checkpoint(str(tiny_model(family)))
    back_end = BackEnd(load_model(checkpoint, task=Task.CAUSAL_LM, dtype=torch.float32).model, 2)
    rows = torch.randn(1, 12, HIDDEN, generator=torch.Generator().manual_seed(1))
    cache = DynamicCache(config=back_end.model.config)
    with torch.no_grad():
        wanted = back_end(rows, torch.ones(1, 12, dtype=torch.int64))
        parts = [rows[:, :7], *(rows[:, n : n + 1] for n in range(7, 12))]
        found = torch.cat([back_end.continue_with(part, cache) for part in parts], dim=1)
    assert float((found - wanted).norm() / wanted.norm()) < CACHED_STEPS


def test_a_model_that_cannot_go_on_is_run_on_everything_with_the_same_result(completing_run, prompts, monkeypatch):
    cached = _tokens(_generator(completing_run, FrontKind.FP32), prompts[8])
    monkeypatch.setattr(BackEnd, "continue_with", lambda *_: (_ for _ in ()).throw(TypeError("no cache")))
    generator = _generator(completing_run, FrontKind.FP32)
    assert not generator.is_cached
    assert _tokens(generator, prompts[8]) == cached


def test_a_completion_ends_where_the_bundles_length_ends(completing_run, prompts):
    prompt = (prompts[8] * 5)[:40]
    found = list(_generator(completing_run, FrontKind.FP32).tokens(prompt, Ending(max_new_tokens=100)))
    assert (len(found) - 1, found[-1]) == (8, StopReason.MAX_TOKENS)


def test_the_end_token_ends_a_completion_and_is_no_part_of_it(completing_run, prompts):
    generator = _generator(completing_run, FrontKind.FP32)
    prompt, usual, index = next(
        (prompt, usual, n)
        for prompt in prompts
        for usual in [_tokens(generator, prompt)]
        for n in range(1, len(usual))
        if usual[n] not in usual[:n]
    )
    found = list(generator.tokens(prompt, Ending(max_new_tokens=99, end_token_id=usual[index])))
    assert found == [*usual[:index], StopReason.END_TOKEN]


def test_drawn_tokens_follow_from_the_seed():
    logits = torch.tensor([2.0, 1.0, 0.5, -30.0])
    draw = lambda seed: [  # noqa: E731
        choose_token(logits, Choosing(temperature=1.0), torch.Generator().manual_seed(n))
        for n in range(seed, seed + 60)
    ]
    assert draw(0) == draw(0)
    assert set(draw(0)) == {0, 1, 2}


def test_only_the_likeliest_tokens_are_drawn_with_top_p():
    logits = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    chance = torch.Generator().manual_seed(0)
    drawn = {choose_token(logits, Choosing(temperature=1.0, top_p=0.6), chance) for _ in range(200)}
    assert drawn == {1, 2}
    assert {choose_token(logits, Choosing(temperature=1.0, top_p=0.01), chance) for _ in range(20)} == {1}


class _Letters:
    """A tokenizer whose ids are characters; 0 is half of one."""

    def decode(self, token_ids):
        return "".join("\ufffd" if token == 0 else chr(token) for token in token_ids)


def _grow(text, stop):
    completion, pieces = Completion(_Letters(), stop), []
    for letter in text:
        pieces.append(completion.add(0 if letter == "?" else ord(letter)))
        if completion.reason:
            break
    return completion, pieces


def test_a_stop_text_ends_a_completion_and_nothing_of_it_is_ever_shown():
    completion, pieces = _grow("one\nUser: two", ["\nUser:"])
    assert (completion.text, completion.reason) == ("one", StopReason.STOP_TEXT)
    assert "".join(pieces) == "one"


def test_the_beginning_of_a_stop_text_is_shown_once_it_is_none():
    completion, pieces = _grow("one\nUs two", ["\nUser:"])
    assert pieces[3:6] == ["", "", ""]
    assert "".join(pieces) == completion.text == "one\nUs two"


def test_half_a_character_waits_for_its_other_half():
    _, pieces = _grow("a?", [])
    assert pieces == ["a", ""]


def test_the_command_completes_prompts_and_says_how_they_ended(completing_run, texts, capsys):
    run = str(completing_run.folder.path)
    assert main(["generate", "--run", run, "--max-new-tokens", "4", "--json", texts[4], texts[5]]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["prompt"] for answer in answers] == texts[4:6]
    assert {answer["ended_by"] for answer in answers} == {"max-new-tokens"}
    assert main(["generate", "--run", run, "--max-new-tokens", "4", texts[4]]) == 0
    assert capsys.readouterr().out == texts[4] + answers[0]["completion"] + "\n"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--temperature", "-1"], "--temperature"),
        (["--top-p", "0"], "--top-p"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--bundle", "nobody"], "no bundle of the run"),
    ],
)
def test_wrong_options_are_named(completing_run, argv, named, capsys):
    assert main(["generate", "--run", str(completing_run.folder.path), *argv, "the light"]) == 2
    assert named in capsys.readouterr().err


def test_a_classifying_run_is_sent_to_predict(classifying_run, capsys):
    assert main(["generate", "--run", str(classifying_run.folder.path), "the light"]) == 2
    assert "sf-server predict" in capsys.readouterr().err


def test_pieces_join_to_the_completion(completing_run, prompts):
    tokenizer = open_tokenizer(completing_run.bundle)
    completion = Completion(tokenizer, ())
    pieces = list(
        complete(_generator(completing_run, FrontKind.FP32), prompts[6], completion, Ending(max_new_tokens=6))
    )
    assert "".join(pieces) == completion.text == tokenizer.decode(completion.token_ids)
