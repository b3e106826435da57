"""``audit.html``: an audit to look at, one file that asks no other for anything."""

import json

from simulations.audit.section import audit_section, verdict
from simulations.documents import Document
from simulations.report.page import facts, render


def render_audit(document: Document) -> str:
    """Return the page of an audit's document."""
    return render(
        "audit.html.j2",
        document=document,
        verdict=verdict(document),
        audit=audit_section(document),
        data=facts(document["data"]),
        machine=facts(document["machine"]),
        experiment=json.dumps(document["experiment"], indent=2, ensure_ascii=False),
    )
