"""Tokens in, tokens out: two continuations of one prompt, without computing it twice.

python examples/sessions.py
"""

import gpt_oss_native as gon
from gpt_oss_native.harmony import Conversation, Message, Role

with gon.Model.load("nano") as model:
    question = Message.from_role_and_content(Role.USER, "Which is larger, 312 or 321?")
    prompt = model.harmony.render_conversation_for_completion(
        Conversation.from_messages([question]), Role.ASSISTANT
    )
    stops = model.harmony.stop_tokens_for_assistant_actions()

    trunk = model.session()
    trunk.forward(prompt[:-1], logits="none")
    for temperature in (0.0, 1.0):
        with trunk.fork() as branch:
            sampling = gon.Sampling(temperature=temperature, seed=1)
            tokens = branch.generate(prompt[-1:], sampling, max_new_tokens=200, stop_tokens=stops)
            print(f"temperature {temperature}: {model.harmony.decode(list(tokens))}")

    # How likely the model finds each of two answers, without sampling anything.
    for answer in ("312", "321"):
        text = f"assistant<|channel|>final<|message|>{answer}<|return|>"
        scores = trunk.score(model.harmony.encode(text, allowed_special="all"))
        print(f"log-probability of {answer}: {scores.sum():.3f}")
