"""From messages to tokens: headers as special tokens and words, contents as ordinary text.

Everything that comes from a caller is encoded with ``encode_ordinary``: a special-token string in a
text, a description or a name is text and never a token. The only special tokens are those that this
module writes itself, and ``<|constrain|>`` at the start of a content type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidArgument
from ._checks import CONSTRAIN, HarmonyError, check_content_type, check_name
from .content import Content, DeveloperContent, SystemContent, TextContent
from .messages import Conversation, Message, Role
from .tools import ToolNamespaceConfig
from .typescript import schema_to_typescript

if TYPE_CHECKING:
    from .encoding import HarmonyEncoding


@dataclass
class RenderConversationConfig:
    """How a conversation is rendered.

    Attributes:
        auto_drop_analysis: leave out the reasoning of finished turns, as the format asks.
        drop_finished_analysis: with ``auto_drop_analysis``, leave out the reasoning of *every* turn
            that was answered before the last user message, and keep that of the last turn. The
            default drops, like ``openai_harmony``, only what precedes the first final message, and
            nothing at all while a turn is unfinished.
        complete_schemas: render every JSON schema keyword (see :mod:`.typescript`).
    """

    auto_drop_analysis: bool = True
    drop_finished_analysis: bool = False
    complete_schemas: bool = False


@dataclass
class RenderOptions:
    """How a single message is rendered.

    Attributes:
        conversation_has_function_tools: the system block then says where such calls have to go.
        complete_schemas: as in :class:`RenderConversationConfig`.
    """

    conversation_has_function_tools: bool = False
    complete_schemas: bool = False


def render_messages(
    encoding: HarmonyEncoding, conversation: Conversation, config: RenderConversationConfig | None
) -> list[int]:
    """Tokens of the conversation, analysis dropped as ``config`` says."""
    config = config or RenderConversationConfig()
    messages = list(conversation)
    options = RenderOptions(
        conversation_has_function_tools=any(map(_declares_functions, messages)),
        complete_schemas=config.complete_schemas,
    )
    dropped = _dropped_before(messages, config)
    out: list[int] = []
    for index, message in enumerate(messages):
        if index >= dropped or message.channel != "analysis":
            out.extend(render_message(encoding, message, options))
    return out


def _dropped_before(messages: list[Message], config: RenderConversationConfig) -> int:
    """The index before which analysis messages are left out."""
    finals = [index for index, message in enumerate(messages) if message.channel == "final"]
    if not config.auto_drop_analysis or not finals:
        return 0
    if config.drop_finished_analysis:
        turn = (Role.ASSISTANT, Role.TOOL)
        asked = [index for index, m in enumerate(messages) if m.author.role not in turn]
        return max((index for index in finals if asked and index < asked[-1]), default=0)
    last = next((m for m in reversed(messages) if m.author.role == Role.ASSISTANT), None)
    return finals[0] if last is not None and last.channel == "final" else 0


def _declares_functions(message: Message) -> bool:
    for content in message.content:
        if isinstance(content, DeveloperContent) and content.tools:
            functions = content.tools.get("functions")
            if functions is not None and functions.tools:
                return True
    return False


def render_message(
    encoding: HarmonyEncoding, message: Message, options: RenderOptions | None
) -> list[int]:
    """Tokens of one message, ``<|start|>`` to ``<|end|>`` or ``<|call|>``.

    Raises HarmonyError for a tool without a name or a block under the wrong role, InvalidArgument
    for a name, recipient, channel or content type that could forge a header.
    """
    options = options or RenderOptions()
    out = _render_header(encoding, message)
    for content in message.content:
        out.extend(encoding.encode_text(_content_text(content, message, options)))
    is_call = message.author.role == Role.ASSISTANT and message.recipient is not None
    out.append(encoding.call if is_call else encoding.end)
    return out


def _render_header(encoding: HarmonyEncoding, message: Message) -> list[int]:
    role, name = Role(message.author.role), message.author.name
    if name is not None:
        check_name("render", "an author name", name)
    encode = encoding.encode_text
    out = [encoding.start]
    if role == Role.TOOL:
        if name is None:
            raise HarmonyError("[render] Tools should have a name! Use Author.new(Role.TOOL, name)")
        out.extend(encode(name))
    else:
        out.extend(encode(role.value))
        if name is not None:
            out.extend(encode(f":{name}"))
    if message.recipient is not None and message.recipient != "all":
        out.extend(encode(f" to={check_name('render', 'a recipient', message.recipient)}"))
    if message.channel is not None:
        out.append(encoding.channel)
        out.extend(encode(check_name("render", "a channel", message.channel)))
    content_type = check_content_type("render", message.content_type)
    if content_type is not None and content_type.startswith(CONSTRAIN):
        out.extend(encode(" "))
        out.append(encoding.constrain)
        out.extend(encode(content_type.removeprefix(CONSTRAIN)))
    elif content_type is not None:
        out.extend(encode(f" {content_type}"))
    out.append(encoding.message)
    return out


def _content_text(content: Content, message: Message, options: RenderOptions) -> str:
    if isinstance(content, TextContent):
        return content.text
    if isinstance(content, SystemContent):
        _check_role(message, Role.SYSTEM, "SystemContent")
        return system_text(content, options)
    if isinstance(content, DeveloperContent):
        _check_role(message, Role.DEVELOPER, "DeveloperContent")
        return developer_text(content, options)
    raise InvalidArgument(f"[render] expected a harmony content, got {type(content).__name__}")


def _check_role(message: Message, role: Role, content: str) -> None:
    if message.author.role != role:
        raise HarmonyError(
            f"[render] {content} may only appear in {role.value} messages, "
            f"found in a message of role {Role(message.author.role).value}"
        )


def system_text(content: SystemContent, options: RenderOptions) -> str:
    """The text of a system message."""
    top: list[str] = []
    if content.model_identity is not None:
        top.append(content.model_identity)
    if content.knowledge_cutoff is not None:
        top.append(f"Knowledge cutoff: {content.knowledge_cutoff}")
    if content.conversation_start_date is not None:
        top.append(f"Current date: {content.conversation_start_date}")
    sections = ["\n".join(top)] if top else []
    if content.reasoning_effort is not None:
        sections.append(f"Reasoning: {content.reasoning_effort.value.lower()}")
    if content.tools:
        sections.append(_tools_text(content.tools, options.complete_schemas))
    channels = content.channel_config
    if channels is not None and channels.valid_channels:
        line = f"# Valid channels: {', '.join(channels.valid_channels)}."
        if channels.channel_required:
            line += " Channel must be included for every message."
        if options.conversation_has_function_tools:
            line += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(line)
    return "\n\n".join(sections)


def developer_text(content: DeveloperContent, options: RenderOptions) -> str:
    """The text of a developer message."""
    sections: list[str] = []
    if content.instructions is not None:
        sections += ["# Instructions", content.instructions]
    if content.tools:
        sections.append(_tools_text(content.tools, options.complete_schemas))
    return "\n\n".join(sections)


def _tools_text(tools: dict[str, ToolNamespaceConfig], complete: bool) -> str:
    namespaces = (_namespace_text(tools[key], complete) for key in sorted(tools))
    return "\n\n".join(["# Tools", *namespaces])


def _namespace_text(namespace: ToolNamespaceConfig, complete: bool) -> str:
    name = check_name("render", "a namespace name", namespace.name)
    prefix = "// " if namespace.tools else ""
    out = [f"## {name}\n"]
    out.extend(f"{prefix}{line}" for line in _lines(namespace.description or ""))
    if namespace.tools:
        out.append(f"namespace {name} {{\n")
        for tool in namespace.tools:
            out.extend(f"// {line}" for line in _lines(tool.description))
            kind = f"type {check_name('render', 'a tool name', tool.name)} ="
            if tool.parameters is None:
                out.append(f"{kind} () => any;\n")
            else:
                parameters = schema_to_typescript(tool.parameters, complete=complete)
                out.append(f"{kind} (_: {parameters}) => any;\n")
        out.append(f"}} // namespace {name}")
    return "\n".join(out)


def _lines(text: str) -> Iterable[str]:
    """The lines of ``text``: ended by LF or CRLF, no empty last line."""
    *lines, last = text.split("\n")
    yield from (line.removesuffix("\r") for line in lines)
    if last:
        yield last
