"""A conversation of several turns: only what is new is computed, and reasoning is dropped between.

python examples/conversation.py
"""

import gpt_oss_native as gon

with gon.Model.load("nano") as model:
    chat = model.chat(sampling=gon.Sampling(temperature=0), max_new_tokens=400)
    for question in ("What is 57 + 68?", "Sort 31, 4, 15.", 'Reverse the word "lemon".'):
        reply = chat.ask(question)
        usage = reply.usage
        print(f"{question}  {reply.final}  ({reply.finish_reason})")
        print(
            f"  context {usage.prompt_tokens} tokens, {usage.cached_tokens} from the cache; "
            f"{usage.completion_tokens} sampled, {usage.reasoning_tokens} to reason"
        )
