"""Scores of responses by a reward model that may have another tokenizer than the actor."""

from torch import Tensor

from rlhf.data.tokens import Encoded, Tokenizer, last_tokens, right_mask, sequence_batch, text_ids
from rlhf.models.families import last_position
from rlhf.ppo.engine import DeepSpeedRLHFEngine
from rlhf.ppo.forward import response_scores


def score(engine: DeepSpeedRLHFEngine, ids: Tensor, mask: Tensor, responses: int, ended: Tensor) -> Tensor:
    """The reward model's score of each sequence, [B] in float32.

    `ids` and `mask` [B, T] are the actor's, their last `responses` columns the responses; `ended` [B] tells which of them
    reached end-of-text. A reward model with a tokenizer of its own reads the decoded text, encoded as it was trained on it:
    the prompt, then the response after a space, then end-of-text if the actor ended.
    """
    packing = engine.args.ppo.packing
    if engine.reward_tokenizer is None:
        return response_scores(engine.reward, ids, mask, packing)
    split = ids.size(1) - responses
    items = [
        encoded(engine, row[:split][kept[:split].bool()], row[split:][kept[split:].bool()], bool(done))
        for row, kept, done in zip(ids, mask, ended, strict=True)
    ]
    batch = sequence_batch(items, engine.reward_tokenizer.pad_token_id, engine.device)
    return response_scores(engine.reward, batch.ids, right_mask(batch.lengths, batch.ids.size(1)), packing)


def encoded(engine: DeepSpeedRLHFEngine, prompt: Tensor, response: Tensor, ended: bool) -> Encoded:
    """A prompt and a response of the actor's tokens in those of the reward model; where its positions do not suffice, they
    lose their beginning, the prompt first."""
    own: Tokenizer = engine.reward_tokenizer
    prompt_text, text = (engine.tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, response))
    answer = list(own(" " + text.strip(), add_special_tokens=False)["input_ids"]) + [own.eos_token_id] * ended
    question = text_ids(prompt_text, own)
    limit = last_position(engine.reward.module.config)
    room = limit - len(answer)
    if room < len(question):
        question = last_tokens(question, max(0, room), own)
    return Encoded(question, answer[-limit:])
