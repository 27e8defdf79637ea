"""How what is asked becomes text: one template, when a store is made and when a model is asked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """Text around what is said, which stands for `{}`.

    Attributes:
      system: of the system's turn.
      user: of a user's.
      answer: comes before the assistant's, which ends in the end-of-text token.
    """

    system: str = "### System:\n{}\n\n"
    user: str = "### Instruction:\n{}\n\n"
    answer: str = "### Response:\n"

    def prompt(self, instruction: str, system: str = "") -> str:
        """Returns the text that the answer to an instruction follows."""
        told = self.said("system", system) if system else ""
        return told + self.said("user", instruction) + self.answer

    def said(self, role: str, content: str) -> str:
        """Returns the text of a turn of the system or a user."""
        form = self.system if role == "system" else self.user
        return form.replace("{}", content)


PLAIN = Template()
"""Words only, so that every tokenizer can say it."""
