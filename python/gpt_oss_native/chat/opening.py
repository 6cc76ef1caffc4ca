"""What stands before the first question, and what it rules: system and developer messages, tools,
the form of answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import structured
from ..errors import InvalidArgument
from ..harmony import (
    Conversation,
    DeveloperContent,
    Message,
    ReasoningEffort,
    RenderConversationConfig,
    Role,
    SystemContent,
    TextContent,
)
from .response_format import ResponseFormat
from .steering import Rules
from .toolbox import Toolbox

if TYPE_CHECKING:
    from ..model import Model

_log = logging.getLogger("gpt_oss_native")


class Opening:
    """The opening messages, rendered.

    Attributes:
        messages: the system message, and a developer message where there is something to say.
        tokens: the same, rendered.
        answer: tokens that open a message of the assistant.
        prefill: what stands before the first of them: an empty analysis, without reasoning.
        toolbox: the tools.
        format: the form of the answers; None where they are free.
        rules: what may be sampled.
    """

    def __init__(
        self,
        model: Model,
        *,
        instructions: str | None,
        reasoning: str,
        conversation_date: str | None,
        tools: Sequence[Any],
        response_format: Any,
        mask_headers: bool,
    ) -> None:
        encoding, vocab_size = model.harmony, model.config.vocab_size
        self.toolbox = Toolbox(tools, encoding)
        self._model = model
        self.format = None if response_format is None else self.format_of(response_format)
        thinks = reasoning != "none"
        system = SystemContent.new().with_reasoning_effort(_effort(reasoning))
        if conversation_date is not None:
            system = system.with_conversation_start_date(conversation_date)
        developer = DeveloperContent.new()
        if instructions is not None:
            developer = developer.with_instructions(instructions)
        self.toolbox.declare(system, developer)
        self.messages = [Message.from_role_and_content(Role.SYSTEM, system)]
        if instructions is not None or developer.tools or self.format is not None:
            message = Message.from_role_and_content(Role.DEVELOPER, developer)
            if self.format is not None:
                gap = "\n\n" if instructions is not None or developer.tools else ""
                message.adding_content(TextContent(gap + self.format.prompt()))
            self.messages.append(message)
        self.tokens = encoding.render_conversation(
            Conversation.from_messages(self.messages),
            RenderConversationConfig(complete_schemas=True),
        )
        self.answer = [encoding.start, *encoding.encode_text(Role.ASSISTANT.value)]
        empty = "<|channel|>analysis<|message|><|end|>"
        self.prefill = (
            [] if thinks else [*self.answer, *encoding.encode(empty, allowed_special="all")]
        )
        self._grammars = self._argument_grammars(model)
        self.rules = Rules(
            encoding=encoding,
            vocab_size=vocab_size,
            mask_headers=mask_headers,
            reasoning=thinks,
            arguments=self._argument_matcher,
        )
        self._call_ends = (encoding.call, encoding.end)

    def format_of(self, given: Any) -> ResponseFormat | None:
        """The form of answers that ``given`` asks for; None for text of any form."""
        if isinstance(given, dict) and given.get("type") == "text":
            return None
        return ResponseFormat(given, self._model.harmony, self._model.config.vocab_size)

    def _argument_grammars(self, model: Model) -> dict[str, structured.SchemaGrammar]:
        """A grammar for the arguments of each tool that has a schema that can be followed."""
        found: dict[str, structured.SchemaGrammar] = {}
        if not structured.is_available():
            return found
        for name, schema in self.toolbox.schemas.items():
            try:
                found[name] = structured.SchemaGrammar(  # what it passes over, the call checks
                    model.harmony, schema, model.config.vocab_size, lenient=True
                )
            except InvalidArgument as error:
                _log.warning("the arguments of %s are checked only after the call: %s", name, error)
        return found

    def _argument_matcher(self, recipient: str) -> structured.Matcher | None:
        grammar = self._grammars.get(recipient)
        return None if grammar is None else grammar.matcher(*self._call_ends)


def _effort(reasoning: str) -> ReasoningEffort:
    if reasoning == "none":
        return ReasoningEffort.LOW
    try:
        return ReasoningEffort(reasoning)
    except InvalidArgument:
        raise InvalidArgument(
            f"[chat] reasoning: expected 'none', 'low', 'medium' or 'high' (Low, Medium and High "
            f"are the same), got {reasoning!r}"
        ) from None
