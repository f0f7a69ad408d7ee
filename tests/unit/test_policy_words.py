"""What the command line says of policies; names are anybody's, and mean nothing to whoever prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamos_ng.cli import main, policy
from dynamos_ng.policy_values import Applied, Explanation, Policy, PolicyDiff, PolicyStatus, RuleStatus
from dynamos_ng.wire import plain

#: To rich these are the end of a tag, and a style.
NAME = "[/x] [bold]"


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    rule = RuleStatus(NAME, "daemon", (f"argv {NAME}",), "2030", False, 3, (("f", "v2"),), 4)
    status = PolicyStatus(NAME, NAME, "now", 3, (rule,), 2, (NAME,))
    policy.show(plain(Policy((), (), (), status)))
    policy.show(plain(Policy(((1, 2, NAME),), ((NAME, 1),), ((NAME, bytes(256)),))))
    policy._differs(plain(PolicyDiff(NAME, "", ((NAME, "new"),), ((1, NAME, "", NAME),))))
    policy._applied(plain(Applied(NAME, 3, 4, 5)))
    policy._explained(
        plain(Explanation(1, NAME, 3, NAME, "how", "2026", NAME, ((NAME, "v2"),), ((NAME, NAME),), NAME, False))
    )
    policy._explained(plain(Explanation(1, NAME, 3, "", "not known", "", NAME, (), (), "", False)))
    said = capsys.readouterr().out
    assert said.count("[/x]") >= 18
    assert said.count("[/x]") == said.count("[bold]")


def test_check_tells_who_decides_each_rule(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f'[[rule]]\nname = "{NAME}"\nmatch = {{ argv = "a*" }}\nupdates = {{ u = 2 }}\n')
    assert main(["policy", "check", str(file)]) == 0
    assert NAME in capsys.readouterr().out
    assert main(["policy", "check", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": str(file), "rules": [{"name": NAME, "where": "daemon", "line": 1}], "classes": 2}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b"a = 1\nb = \xff", "p.toml:2: not TOML: it is no UTF-8"),
        (b"#" * (1 << 19), "it has 524288 bytes; a policy has at most 262144"),
        (b"x = 1", "p.toml:1: x: unknown key"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(
    content: bytes | None, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "p.toml").write_bytes(content)
    assert main(["policy", "check", str(tmp_path / "p.toml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dynamos: ") and says in error
