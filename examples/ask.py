"""Ask the embedded model a question, and see its reasoning as it comes.

python examples/ask.py "What is 57 + 68?"
"""

import sys

import gpt_oss_native as gon

question = sys.argv[1] if len(sys.argv) > 1 else "What is 57 + 68?"

with gon.Model.load("nano") as model:
    chat = model.chat(sampling=gon.Sampling(temperature=0))
    for event in chat.stream(question):
        stream = sys.stderr if event.channel == "analysis" else sys.stdout
        print(event.delta, end="", file=stream, flush=True)
    print()
