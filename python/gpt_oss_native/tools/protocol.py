"""What a chat asks of a tool. Any object of this shape is one; nothing is to be inherited."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..harmony import Message, ToolDescription, ToolNamespaceConfig

__all__ = ["Tool"]


@runtime_checkable
class Tool(Protocol):
    """A tool that the model may call.

    Attributes:
        name: what the model addresses: ``functions.get_weather``, ``python``, ``browser``. A tool
            whose `namespace` declares several functions, such as ``browser``, is named like the
            namespace and gets the calls to all of them (``browser.search``, ``browser.open``).
    """

    name: str

    def namespace(self) -> ToolNamespaceConfig | ToolDescription:
        """How the tool is declared to the model.

        A `ToolDescription` is a function of the namespace before the dot in `name`, declared in
        the developer message. A `ToolNamespaceConfig` is a namespace of its own: ``python`` and
        ``browser`` are declared in the system message, as the models were trained, others in the
        developer message.
        """
        ...

    def call(self, message: Message) -> str | list[Message]:
        """Runs the call and returns its result, as text or as messages to the assistant.

        ``message.recipient`` is what was called and ``message.text`` what was passed. Blocks until
        done; may be called from another thread than the one that made the tool. What it raises is
        told to the model as the result, so the text of the exception should say what to do.

        A tool may have a method ``interrupt()``, without arguments: it is called from another
        thread when the time for the call is over, and makes the call return soon.
        """
        ...
