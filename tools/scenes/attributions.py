"""Who made the furniture that a dataset shows, and under which licence."""

from __future__ import annotations

from collections.abc import Iterable

from tools.scenes.styles import Style


def attributions(styles: Iterable[Style]) -> str:
    """Markdown list of every model that buildings of these styles may show, with creator, licence and set."""
    shown = {model.key: model for style in styles for owned in style.furniture.values() for model in owned}
    lines = [
        "# Attributions",
        "",
        "The rooms are rendered from furniture models of the Debian package `sweethome3d-furniture`; the models were",
        "placed, lit and drawn as pictures, and otherwise left as they are. Licences:",
        "CC0 1.0 https://creativecommons.org/publicdomain/zero/1.0/ ,",
        "CC-BY 3.0 https://creativecommons.org/licenses/by/3.0/ ,",
        "CC-BY 3.0 US https://creativecommons.org/licenses/by/3.0/us/ .",
        "Scopia's models are also to be credited to Emmanuel Puybaret / eTeks (https://www.sweethome3d.com).",
        "",
        "| model | name | creator | licence | set |",
        "|---|---|---|---|---|",
    ]
    for model in sorted(shown.values(), key=lambda entry: (entry.set_name, entry.key)):
        creator = model.creator.replace("|", "/")
        lines.append(f"| {model.key.split('#')[-1]} | {model.name} | {creator} | {model.licence} | {model.set_name} |")
    return "\n".join(lines) + "\n"
