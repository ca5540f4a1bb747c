"""Plugins: found without being imported, loaded in isolation, blamed by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from outsiders import MODEL, install

import zoo
from zoo import hooks, registry
from zoo.errors import PluginError, UnknownName
from zoo.plugins import manager
from zoo.plugins.declarations import API
from zoo.plugins.kinds import KINDS
from zoo.plugins.names import of_kind, plugin_of, refresh

pytestmark = pytest.mark.quick

LOSS = '[[loss]]\nname = "{name}"\nsummary = "Made up for a test"\n'

CODE = """
from zoo.hooks import hookimpl

@hookimpl
def register_losses(register):
    register({name!r}, {target!r})
"""

BUILTIN = ("zoo", "zoo_compress", "zoo_h2ovl", "zoo_slm", "zoo_snapgen", "zoo_timm")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path for plugins; it and what was found there are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("ZOO_PLUGINS", raising=False)
    monkeypatch.delenv("ZOO_STRICT", raising=False)
    refresh()
    yield tmp_path
    monkeypatch.undo()
    refresh()


def refusal_of(name: str) -> str:
    with pytest.raises(PluginError) as caught:
        manager.load(name)
    return str(caught.value)


def test_the_builtin_plugins_come_in_through_the_same_door():
    found = {plugin.name: plugin for plugin in manager.plugins_in_use()}
    assert list(found)[: len(BUILTIN)] == list(BUILTIN)
    for name in BUILTIN:
        assert found[name].distribution == "zoo-compress" and found[name].version and not found[name].fault


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_plugins_register_exactly_what_they_declare(name: str):
    targets = manager.load(name)
    assert {kind: set(names) for kind, names in targets.items()} == {
        kind: set(manager.find(name).declares(kind)) for kind in KINDS
    }


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "command"])
def test_everything_declared_can_be_had(kind: str):
    have = {
        "family": registry.family,
        "compressor": registry.compressor,
        "loss": registry.loss,
        "evaluator": registry.evaluator,
        "data": registry.data_source,
    }[kind]
    for name in of_kind(kind):
        assert have(name) is have(name)


def test_every_kind_has_its_hook():
    assert {kind.hook for kind in KINDS.values()} <= set(str(hooks.__doc__).replace(",", " ").replace(".", " ").split())


def test_declaring_imports_nothing(site: Path):
    install(site, "out_quiet", registry=MODEL.format(name="quiet", params=1))
    assert manager.find("out_quiet").declares("model") == ("quiet",)
    assert "out_quiet" not in sys.modules


def test_an_outsider_adds_a_loss(site: Path):
    package = install(
        site, "out_loss", registry=LOSS.format(name="mine"), code=CODE.format(name="mine", target="out_loss.made:Mine")
    )
    (package / "made.py").write_text("print('importing')\n\nclass Mine:\n    pass\n")
    assert plugin_of("loss", "mine") == "out_loss"
    assert "out_loss" not in sys.modules
    assert type(registry.loss("mine")).__name__ == "Mine"
    assert registry.loss("mine") is registry.loss("out_loss:mine")


def test_what_a_plugin_prints_while_loading_goes_to_stderr(site: Path, capsys: pytest.CaptureFixture[str]):
    package = install(
        site,
        "out_loud",
        registry=LOSS.format(name="loud"),
        code="print('hello')\n" + CODE.format(name="loud", target="out_loud.made:Loud"),
    )
    (package / "made.py").write_text("print('importing')\n\ndef Loud(): pass\n")
    registry.loss("loud")
    out, err = capsys.readouterr()
    assert out == "" and err == "hello\nimporting\n"


def test_one_bad_plugin_is_one_fault_and_the_rest_goes_on(site: Path):
    package = install(site, "out_bad", registry="name = 1")
    install(site, "out_good", registry=MODEL.format(name="good", params=1))
    assert manager.find("out_bad").fault == (
        f"{package / 'registry.toml'}: 'name' is not a table. "
        "Tables: model, option, family, compressor, loss, evaluator, data, command."
    )
    assert manager.find("out_good").declares("model") == ("good",)
    with pytest.raises(UnknownName, match=r"Plugin out_bad cannot be used; `zoo plugins` says why\.$"):
        registry.loss("anything")


def test_strict_mode_raises_the_fault(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "out_bad", registry=None)
    assert "cannot be read: No such file" in manager.find("out_bad").fault
    monkeypatch.setenv("ZOO_STRICT", "1")
    with pytest.raises(PluginError, match=r"^Plugin out_bad: .*registry\.toml cannot be read"):
        manager.plugins_in_use()


def test_a_missing_package_is_a_fault(site: Path):
    install(site, "out_gone", catalog="out_nowhere")
    install(site, "out_deep", catalog="out_deep.inner")
    assert manager.find("out_gone").fault == (
        "its package 'out_nowhere' is not there: install distribution out-gone again, or uninstall it."
    )
    assert manager.find("out_deep").fault == (
        "its entry point in 'zoo.catalog' must name a top-level package, not 'out_deep.inner'."
    )
    assert "out_deep" not in sys.modules


def test_names_without_a_module_are_a_fault(site: Path):
    install(site, "out_mute", registry=LOSS.format(name="mute"))
    assert manager.find("out_mute").fault == (
        "registry.toml declares loss 'mute', but the distribution has no entry point 'out_mute' in the group 'zoo' "
        "that would register it."
    )


def test_a_clash_names_both_and_refuses_the_later(site: Path):
    package = install(
        site, "out_clash", registry=LOSS.format(name="kl"), code=CODE.format(name="kl", target="out_clash.made:KL")
    )
    (package / "made.py").write_text("class KL: pass\n")
    assert manager.find("out_clash").fault == (
        "loss 'kl' is already declared by plugin zoo_compress; out_clash's is reached as 'out_clash:kl'."
    )
    assert plugin_of("loss", "kl") == "zoo_compress"
    assert type(registry.loss("out_clash:kl")).__name__ == "KL"


def test_a_plugin_name_taken_twice_names_both_and_refuses_both(site: Path):
    install(site, "out_twice", registry=MODEL.format(name="twice", params=1), distribution="out-one")
    claim(site, "out-two", group="zoo.catalog", name="out_twice")
    assert manager.find("out_twice").fault == (
        "distributions out-one and out-two both take the name 'out_twice', and are refused; uninstall one of them."
    )
    assert manager.find("out_twice").models == ()


@pytest.mark.parametrize("group", ["zoo", "zoo.catalog"])
@pytest.mark.parametrize("name", ["zoo", "zoo_slm"])
def test_an_outsider_cannot_take_our_plugins_names(site: Path, group: str, name: str):
    before = manager.load(name)
    claim(site, "thief", group=group, name=name)
    assert (
        manager.find("thief").fault
        == f"takes the plugin name '{name}', which is zoo's own, and is refused; uninstall it."
    )
    assert manager.find(name).status == "ok" and manager.load(name) == before


def claim(site: Path, distribution: str, *, group: str, name: str) -> None:
    """Install a distribution that takes a plugin name."""
    metadata = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = thief\n")
    refresh()


HALF = "as if it were half uninstalled: install it again, or delete {folder}."
DAMAGED = "{folder}/entry_points.txt is damaged ({reason}): delete {folder}, and install it again."


@pytest.mark.parametrize(
    ("metadata", "entries", "name", "fault"),
    [
        (None, "[zoo.catalog]\nodd = odd\n", "odd", f"its metadata says no name and version, {HALF}"),
        ("Version: 1.0\n", "[zoo.catalog]\nodd = odd\n", "odd", f"its metadata says no name, {HALF}"),
        ("Name: odd\n", "[zoo.catalog]\nodd = odd\n", "odd", f"its metadata says no version, {HALF}"),
        ("Name: odd\nVersion: \x1b[2J\n", "[zoo.catalog]\nodd = odd\n", "odd", f"its metadata says no version, {HALF}"),
        ("Name: odd\n\nVersion: 1\n", "[zoo.catalog]\nodd = odd\n", "odd", f"its metadata says no version, {HALF}"),
        (
            "ok",
            "[zoo.catalog]\nodd\n",
            "odd",
            DAMAGED.replace("{reason}", "line 2, 'odd', is not of the form 'name = value'"),
        ),
        ("ok", b"[zoo.catalog]\nodd = \xff\n", "odd", DAMAGED.replace("{reason}", "it is not text")),
        (
            "ok",
            "[zoo.catalog]\nodd = odd\nodd = other\n",
            "odd",
            "it has two entry points 'odd' in the group 'zoo.catalog'; one is enough.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd = odd [torch]\n",
            "odd",
            "its entry point in 'zoo.catalog' must name a top-level package, not 'odd [torch]'.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd = odd:thing\n",
            "odd",
            "its entry point in 'zoo.catalog' must name a top-level package, not 'odd:thing'.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd = ../odd\n",
            "odd",
            "its entry point in 'zoo.catalog' must name a top-level package, not '../odd'.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd =\n",
            "odd",
            "no entry point 'odd' in the group 'zoo.catalog' says where its registry.toml is.",
        ),
        (
            "ok",
            "[zoo]\nodd = odd.plugin\n",
            "odd",
            "no entry point 'odd' in the group 'zoo.catalog' says where its registry.toml is.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd = odd\n[zoo]\nodd = odd.plugin [torch]\n",
            "odd",
            "its entry point in 'zoo' must name a module such as 'package.plugin', not 'odd.plugin [torch]'.",
        ),
        (
            "ok",
            "[zoo.catalog]\n\x1b[2Jodd = odd\n",
            "odd",
            "its entry point '\\x1b[2Jodd' in 'zoo.catalog' is no name for a plugin: at most "
            "200 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        ),
        (
            "ok",
            "[zoo.catalog]\na b = odd\n",
            "odd",
            "its entry point 'a b' in 'zoo.catalog' is no name for a plugin: at most "
            "200 letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd = nowhere\n",
            "odd",
            "its package 'nowhere' is not there: install distribution odd again, or uninstall it.",
        ),
        (
            "ok",
            "[zoo.catalog]\nodd = this\n",
            "odd",
            "'this' is a single module; a registry.toml needs a package to lie in.",
        ),
    ],
)
def test_odd_metadata_is_one_fault_and_the_rest_goes_on(
    site: Path, metadata: str | None, entries: str | bytes, name: str, fault: str
):
    package = install(site, "odd", registry=MODEL.format(name="odd", params=1))
    install(site, "out_good", registry=MODEL.format(name="good", params=1))
    folder = site / "odd-1.0.dist-info"
    (folder / "entry_points.txt").write_bytes(entries if isinstance(entries, bytes) else entries.encode())
    if metadata is None:
        (folder / "METADATA").unlink()
    elif metadata != "ok":
        (folder / "METADATA").write_text(metadata)
    refresh()
    found = manager.find(name)
    assert (found.fault, found.status, found.models) == (fault.format(folder=folder), "broken", ())
    assert [plugin.name for plugin in manager.plugins_in_use() if plugin.fault] == [name]
    assert manager.find("out_good").models and "odd" not in sys.modules and package.exists()


def test_metadata_that_is_nobodys_plugin_is_left_alone(site: Path):
    claim(site, "bystander", group="console_scripts", name="x")
    (site / "bystander-1.0.dist-info/METADATA").unlink()
    refresh()
    assert not [plugin for plugin in manager.plugins_in_use() if plugin.fault]


def test_the_first_of_a_distribution_on_the_path_counts(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "out_first", registry=MODEL.format(name="first", params=1))
    install(tmp_path / "later", "out_first", registry=MODEL.format(name="second", params=1))
    metadata = tmp_path / "later/out_first-1.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "later")])
    refresh()
    found = manager.find("out_first")
    assert (found.version, found.declares("model"), found.fault) == ("1.0", ("first",), "")


def test_a_fault_of_a_distribution_does_not_harm_a_plugin_of_its_name(site: Path):
    install(site, "out_other", registry=MODEL.format(name="other", params=1), distribution="out-real")
    claim(site, "out-other", group="zoo.catalog", name="zoo_slm")
    assert manager.find("out_other").status == "ok"
    assert (
        manager.find("distribution out-other").fault
        == "takes the plugin name 'zoo_slm', which is zoo's own, and is refused; uninstall it."
    )


def test_a_model_cannot_claim_the_weights_of_another_distribution(site: Path):
    install(site, "out_claims", registry=MODEL.format(name="claims", params=1) + 'plugin = "zoo_slm"\n')
    assert (
        manager.find("out_claims").fault
        == "model 'claims': plugin must be left out, or be another of out-claims's, not 'zoo_slm'."
    )


def test_a_plugin_made_for_another_api_is_not_used(site: Path):
    install(
        site,
        "out_newer",
        registry=LOSS.format(name="newer"),
        api=">=2,<3",
        code=CODE.format(name="newer", target="a:b"),
    )
    install(site, "out_old", registry=LOSS.format(name="old"), api=None, code=CODE.format(name="old", target="a:b"))
    fault = f"needs plugin API >=2,<3, and this zoo {zoo.__version__} has 1: upgrade zoo, or install a version of out-newer made for it."
    assert manager.find("out_newer").fault == fault
    assert refusal_of("out_newer") == f"Plugin out_newer cannot be used: {fault}"
    assert "'api' is missing: write api = \">=1,<2\"" in manager.find("out_old").fault
    assert not {"newer", "old"} & set(of_kind("loss"))
    with pytest.raises(UnknownName, match=r"Plugin out_newer, out_old cannot be used; `zoo plugins` says why\.$"):
        registry.loss("newer")
    assert API == 1


def test_where_a_plugin_was_installed_from(site: Path):
    install(site, "out_from")
    place = site / "out_from-1.0.dist-info/direct_url.json"
    assert manager.find("out_from").origin == ""
    for content, origin in (
        ('{"url": "file:///some%20where", "dir_info": {"editable": true}}', "/some where (editable)"),
        ('{"url": "file:///x/y-1.0-py3-none-any.whl", "archive_info": {}}', "/x/y-1.0-py3-none-any.whl"),
        (
            '{"url": "https://git/x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}',
            "git+https://git/x @ 0123456789ab",
        ),
        ('{"url": "https://x/\\u001b[2J"}', "https://x/\\x1b[2J"),
        ("{", ""),
        ("[]", ""),
        ('{"vcs_info": 1}', ""),
    ):
        place.write_text(content)
        assert manager.find("out_from").origin == origin
    assert [plugin.name for plugin in manager.of_distribution("Out.From")] == ["out_from"]


def test_zoo_plugins_admits_only_what_it_names(site: Path, monkeypatch: pytest.MonkeyPatch):
    install(site, "out_a", registry=MODEL.format(name="a", params=1))
    monkeypatch.setenv("ZOO_PLUGINS", "out_a, zoo_compress")
    assert [plugin.name for plugin in manager.plugins_in_use()] == ["zoo", "zoo_compress", "out_a"]
    monkeypatch.setenv("ZOO_PLUGINS", "")
    assert [plugin.name for plugin in manager.plugins_in_use()] == ["zoo"]
    with pytest.raises(UnknownName, match=r"^Plugin 'out_a' is installed, but ZOO_PLUGINS leaves it out\.$"):
        manager.load("out_a")


def test_zoo_plugins_reports_a_name_that_is_not_installed(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZOO_PLUGINS", "zoo_smm")
    assert manager.find("zoo_smm").fault == "ZOO_PLUGINS names it, but it is not installed. Did you mean 'zoo_slm'?"


def test_find_suggests_the_nearest(site: Path):
    with pytest.raises(UnknownName, match=r"^No plugin named 'zoo_sl'\. Did you mean 'zoo_slm'\? `zoo plugins` shows"):
        manager.load("zoo_sl")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import no_such_module_anywhere",
            "out_x.plugin cannot be imported: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        ),
        ("raise SystemExit('bye')", "out_x.plugin cannot be imported: SystemExit: bye"),
        ("1 / 0", "out_x.plugin cannot be imported: ZeroDivisionError: division by zero"),
        (
            "from zoo.hooks import hookimpl\n@hookimpl\ndef register_losses(register):\n    1 / 0\n",
            "register_losses failed: ZeroDivisionError: division by zero",
        ),
        (
            CODE.format(name="x", target="nowhere"),
            "register_losses failed: target 'nowhere' of 'x' is not of the form 'package.module:attribute'",
        ),
        (
            CODE.format(name="x", target="a:b") + "    register('x', 'a:b')\n",
            "register_losses failed: 'x' is registered twice",
        ),
    ],
)
def test_a_plugin_that_fails_is_named_with_the_reason(site: Path, code: str, reason: str):
    for name in [name for name in sys.modules if name.partition(".")[0] == "out_x"]:
        del sys.modules[name]
    install(site, "out_x", registry=LOSS.format(name="x"), code=code)
    assert refusal_of("out_x") == f"Plugin out_x cannot be used: {reason}"
    assert refusal_of("out_x") == f"Plugin out_x cannot be used: {reason}"  # a second try says the same
    assert manager.load("zoo_compress")["loss"]


def test_a_misspelt_hook_is_reported(site: Path):
    install(
        site,
        "out_spelt",
        registry="",
        code=CODE.replace("register_losses", "register_loses").format(name="x", target="a:b"),
    )
    assert "unknown hook 'register_loses'" in refusal_of("out_spelt")
    assert manager.load("zoo_slm")


def test_a_wrong_hook_argument_names_the_hook_and_the_argument(site: Path):
    install(
        site, "out_argument", registry="", code=CODE.replace("(register)", "(registrar)").format(name="x", target="a:b")
    )
    refusal = refusal_of("out_argument")
    assert "out_argument" in refusal and "register_losses" in refusal and "registrar" in refusal


def test_declared_but_not_registered(site: Path):
    install(site, "out_less", registry=LOSS.format(name="one"), code=CODE.format(name="onne", target="a:b"))
    assert refusal_of("out_less") == (
        "Plugin out_less declares loss 'one' in its registry.toml, but register_losses in out_less.plugin does not "
        "register it. Did you mean 'onne'?"
    )


def test_registered_but_not_declared(site: Path):
    install(site, "out_more", registry="", code=CODE.format(name="one", target="a:b"))
    assert refusal_of("out_more") == (
        "Plugin out_more registers loss 'one' in out_more.plugin, but its registry.toml has no [[loss]] of that name."
    )


def test_a_missing_need_says_what_to_install(site: Path):
    install(
        site,
        "out_needy",
        registry=LOSS.format(name="needy") + 'needs = ["no-such-thing>=2"]\n',
        code=CODE.format(name="needy", target="a:b"),
    )
    with pytest.raises(PluginError) as caught:
        registry.loss("needy")
    assert (
        str(caught.value) == "Loss 'needy' of plugin out_needy needs no-such-thing>=2: pip install 'no-such-thing>=2'"
    )


def test_a_missing_import_says_what_to_install(site: Path):
    package = install(
        site,
        "out_import",
        registry=LOSS.format(name="importer"),
        code=CODE.format(name="importer", target="out_import.made:Made"),
    )
    (package / "made.py").write_text("import no_such_module_anywhere.part\n")
    with pytest.raises(PluginError) as caught:
        registry.loss("importer")
    assert str(caught.value) == (
        "Loss 'importer' of plugin out_import needs no_such_module_anywhere: pip install no_such_module_anywhere"
    )


def test_a_target_that_is_not_there_is_named(site: Path):
    package = install(
        site,
        "out_absent",
        registry=LOSS.format(name="absent"),
        code=CODE.format(name="absent", target="out_absent.made:Made"),
    )
    (package / "made.py").write_text("")
    with pytest.raises(PluginError) as caught:
        registry.loss("absent")
    assert str(caught.value) == (
        "Loss 'absent' of plugin out_absent cannot be loaded from out_absent.made:Made: AttributeError: module "
        "'out_absent.made' has no attribute 'Made'"
    )


def test_a_compressor_must_be_one(site: Path):
    registry_text = LOSS.format(name="fake").replace("[[loss]]", "[[compressor]]")
    code = CODE.replace("losses", "compressors").format(name="fake", target="out_fake.made:Fake")
    package = install(site, "out_fake", registry=registry_text, code=code)
    (package / "made.py").write_text("class Fake: pass\n")
    with pytest.raises(PluginError) as caught:
        registry.compressor("fake")
    assert str(caught.value) == "Plugin out_fake: compressor 'fake' (out_fake.made:Fake) is not a Compressor."


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UnknownName) as caught:
        registry.data_source("stdlob")
    assert str(caught.value).startswith("No data source named 'stdlob'. Did you mean 'stdlib'? Data sources: ")
    assert ", stdlib" in str(caught.value)
