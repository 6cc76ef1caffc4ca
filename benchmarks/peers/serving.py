"""A contestant's side of the pipe: requests and answers are JSON, one object a line.

Runs in either contestant's environment, and so knows neither.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def serve(contestant: object, failures: type[Exception]) -> None:
    """Answer requests until the input ends: methods by name; rows go to a file, failures of the
    class given are answers, too. What else writes to the output cannot come between."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        out = request.pop("out", None)
        try:
            answer = getattr(contestant, request.pop("call"))(**request)
            if "rows" in answer:
                np.save(out, answer.pop("rows"))
        except failures as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
