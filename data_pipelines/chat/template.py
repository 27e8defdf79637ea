"""The template that turns turns into text, for building stores and for generation alike."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Text around each turn; `{}` stands for the turn's content.

    Attributes:
      system: text of the system's turn.
      user: text of a user's turn.
      answer: text before an answer; the end-of-text token follows the answer.
    """

    system: str = "### System:\n{}\n\n"
    user: str = "### Instruction:\n{}\n\n"
    answer: str = "### Response:\n"

    def prompt(self, instruction: str, system: str = "") -> str:
        """Returns the text before the answer to an instruction."""
        begin = self.text("system", system) if system else ""
        return begin + self.text("user", instruction) + self.answer

    def text(self, role: str, content: str) -> str:
        """Returns the text of a turn of the system or a user."""
        form = self.system if role == "system" else self.user
        return form.replace("{}", content)


PLAIN = Template()
"""Plain words, which every tokenizer can encode."""
