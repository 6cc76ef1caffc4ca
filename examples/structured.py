"""An answer that follows a JSON schema, reasoning before it free (extra ``grammar``).

python examples/structured.py
"""

import gpt_oss_native as gon

SCHEMA = {
    "type": "object",
    "properties": {"result": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "required": ["result"],
    "additionalProperties": False,
}

with gon.Model.load("nano") as model:
    chat = model.chat(
        response_format=SCHEMA, sampling=gon.Sampling(temperature=0), max_new_tokens=300
    )
    reply = chat.ask("What is 57 + 68?")
    print(reply.analysis)
    print(reply.parsed)
