"""The guests' process: what it prints, what it may not do, and what it costs to be refused."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bise import template as lease
from bise.errors import TemplateError
from bise.template import Guest, render

ROOM = {"messages": [{"role": "user", "content": "hi"}]}


def refused(template: str, match: str, seconds: float = 5.0) -> None:
    """Refused within a bound that leaves room for a busy machine; the limit itself is CPU time."""
    start = time.perf_counter()
    with pytest.raises(TemplateError, match=match) as caught:
        render(template, ROOM)
    assert time.perf_counter() - start < seconds
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content }}", "hi"),
        ("{{ messages[0]['content'] | upper }}", "HI"),
        ("  {% if true %}\n  x\n  {% endif %}\n", "  x\n"),  # trim_blocks, lstrip_blocks
        ("{{ {'a': '<é>&'} | tojson }}", '{"a": "<é>&"}'),  # JSON, not HTML
        ("{{ {'b': 1, 'a': [1]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    1\n  ]\n}'),
        ("{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ nope is defined }}", "False"),
    ],
)
def test_what_templates_expect(template, text):
    assert render(template, ROOM) == text


def test_vectors_of_llama_cpp(shared):
    """Templates with roles of their own, printed as they are (test_chat.py has the others)."""
    found = json.loads((shared / "data/llama_cpp_vectors/chat_templates.json").read_text())
    cases = [c for c in found["cases"] if "extra_conversation" in c]
    assert len(cases) >= 3
    for case in cases:
        talk = [*found["conversation"], *case["extra_conversation"]]
        messages = [{"role": role, "content": content} for role, content in talk]
        variables = {"messages": messages, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
        wanted = case["expected_output_jinja"] or case["expected_output_builtin"]
        assert render(case["template"], variables) == wanted, case["name"]


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ lipsum.__globals__ }}", "undefined"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update({'role': 'system'}) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ raise_exception('roles\nmust   alternate') }}", "roles must alternate"),
        ("{{ nope.nope }}", "undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
    ],
)
def test_blocked(attack, match):
    refused(attack, match)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ ('{0.__class__}' | attr('format'))(1) }}",
        "{{ '%s' | format(''|attr('__class__')) }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ self._TemplateReference__context }}",
    ],
)
def test_underscores_lead_nowhere(attack):
    """Jinja answers some of these with an undefined value, some with an error; never with a class."""
    try:
        text = render(attack, ROOM)
    except TemplateError:
        return
    assert "class" not in text and "Context" not in text


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "256 MB"),
        (
            "{% set x = namespace(s='aaaaaaaa') %}{% for i in range(40) %}{% set x.s = x.s ~ x.s %}{% endfor %}",
            "256 MB",
        ),
        ("{{ [0] * 10**9 }}", "256 MB"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "1 s of CPU"),
        ("{{ (7 ** (10 ** 9)) is odd }}", "1 s of CPU|256 MB"),
        ("{% for i in range(99999) %}{{ 'spam' * 1000 }}{% endfor %}", "prints more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
        ("{% if 1 %}" * 10_000 + "{% endif %}" * 10_000, "nested too deeply|died of"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "nested too deeply|died of"),
        ("{% if 1 %}" * 50_000 + "{% endif %}" * 50_000, "1,050,000 characters"),
    ],
)
def test_stopped(attack, match):
    refused(attack, match, seconds=12.0)


def test_a_child_that_escaped_has_no_more_room():
    """What the limits hold back, sandbox or not: here the same process runs code of our own."""
    code = (
        f"import runpy, sys; child = runpy.run_path({lease._CHILD!r}); child['limit'](1.0, 64 << 20, 1 << 20);"
        "\ntry: bytearray(200 << 20); print('memory')\nexcept MemoryError: pass"
        "\nsys.stdout.flush()\nwhile True: pass"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode < 0 and done.stdout == "", done
    assert time.perf_counter() - start < 12


def test_the_child_inherits_nothing_that_matters(monkeypatch, tmp_path):
    """A module of the same name in the working folder or on PYTHONPATH is not what the child imports."""
    (tmp_path / "jinja2.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert render("{{ 1 + 1 }} fresh", ROOM) == "2 fresh"


def test_variables_must_be_json():
    with pytest.raises(TemplateError, match="JSON's kinds"):
        render("x", {"messages": [object()]})


def test_a_slow_child_is_killed(monkeypatch):
    monkeypatch.setattr(lease, "WALL_SECONDS", 0.001)
    with pytest.raises(TemplateError, match="longer than"):
        render("{{ 'slow' }}", ROOM)


def test_no_zombies_no_files():
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    for i in range(3):
        render("{{ 'again' }}" + " " * i, ROOM)
    after = set(os.listdir("/proc/self/fd")) if before else set()
    assert len(after) <= len(before)


def test_guest_stays_and_says_the_same() -> None:
    with Guest() as guest:
        for i in range(3):
            variables = {"messages": [{"role": "user", "content": f"ünï {i}"}]}
            template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
            assert guest(template, variables) == render(template, variables) == f"ünï {i}|"
        assert guest("{{ 1 + 1 }}", {}) == "2", "another template in the same process"
        process = guest._process
        assert process and process.poll() is None
    assert process.poll() is not None and guest._process is None


def test_guest_goes_on_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a template raises is its answer; one that runs for ever is killed, and the next text gets a new process."""
    monkeypatch.setattr("bise.template.CPU_SECONDS", 0.2)
    with Guest() as guest:
        with pytest.raises(TemplateError, match="the chat template says: no"):
            guest("{{ raise_exception('no') }}", {})
        with pytest.raises(TemplateError, match="CPU time"):
            guest("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {})
        assert guest("{{ 'still here' }}", {}) == "still here"
        with pytest.raises(TemplateError, match="JSON"):
            guest("", {"x": object()})


def test_guest_gets_fresh_time_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bise.template.CPU_SECONDS", 0.5)
    busy = "{% for a in range(60000) %}{% if a is odd %}{% endif %}{% endfor %}{{ x }}"
    with Guest() as guest:
        process = None
        for i in range(60):
            assert guest(busy, {"x": i}) == str(i)
            assert process in (None, guest._process), "the process was replaced"
            process = guest._process


def test_guest_has_a_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that does not answer, and takes no CPU time either, is killed."""
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(60)")
    with Guest() as guest:
        with monkeypatch.context() as patch:
            patch.setattr("bise.template.WALL_SECONDS", 0.3)
            patch.setattr("bise.template._CHILD", str(sleeper))
            with pytest.raises(TemplateError, match="was stopped"):
                guest("x", {})
        assert guest("x", {}) == "x"
