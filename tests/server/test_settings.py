"""The settings: their sources, what is said of wrong ones, and the command line that is made of them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from slicevote_server.engine import EngineSettings
from slicevote_server.service.server import ServerSettings
from slicevote_server.settings import Settings
from slicevote_server.settings_sources import PREFIX, ConfigurationError, describe, read, setting

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "slicevote-server"

OTHERS = {
    "data": "elsewhere",
    "backbone": ["a.onnx", "b.onnx"],
    "listen": "0.0.0.0:1",
    "metrics": "localhost:2",
    "provider": "cpu",
    "log_level": "debug",
    "thumbnails": False,
    "ct_window": [-200.0, 300.0],
    "percentiles": [2.0, 98.0],
    "smoothing": 0.5,
    "strict_numerics": True,
    "threads": 3,
    "batch_size": 4,
    "load_timeout_s": 7.0,
    "max_streams": 5,
    "max_message_bytes": 1_000_000,
    "disk_reserve_bytes": 1_000,
    "header_timeout_s": 4.0,
    "idle_timeout_s": 5.0,
    "grace_s": 3.0,
    "hnsw_m": 16,
    "hnsw_ef_construct": 100,
    "hnsw_ef_search": 128,
    "segment_count": 2,
    "indexing_threshold_kb": 5000,
    "optimize_after": 1000,
    "excluded_share_limit": 0.5,
    "lsh": True,
    "lsh_bits": 128,
    "lsh_rescore": 20,
}
"""A value of every setting that is not its default, except for `lsh`, without which the two after it have no effect."""


def words(name, value):
    """The value as flags."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if name == "backbone":
        return [word for path in value for word in (flag, path)]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def variable(name, value):
    """The value as a variable."""
    separator = os.pathsep if name == "backbone" else ","
    return separator.join(map(str, value)) if isinstance(value, list) else str(value).lower()


def run(*arguments, **environment):
    # The client, which other tests import, silences gRPC for its own process and those that it starts.
    inherited = ("GRPC_VERBOSITY", PREFIX)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
    return subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        env={**clean, "COLUMNS": "200", "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def effective(*arguments, **environment):
    result = run("settings", "--json", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments, **environment):
    result = run("serve", *arguments, **environment)
    assert result.returncode == 2
    assert result.stdout == ""
    return result.stderr


def problems_of(model=Settings, **sources):
    with pytest.raises(ConfigurationError) as caught:
        read(model, **{"environment": {}, **sources})
    return caught.value.problems


class TestSources:
    def test_every_setting_comes_from_every_source(self, tmp_path):
        assert set(OTHERS) == set(Settings.model_fields)
        file = tmp_path / "server.toml"
        file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in OTHERS.items()))
        from_file = effective("--config", file)
        from_variables = effective(**{f"SLICEVOTE_{name.upper()}": variable(name, OTHERS[name]) for name in OTHERS})
        from_flags = effective(*[word for name in OTHERS for word in words(name, OTHERS[name])])
        for number, (name, value) in enumerate(OTHERS.items(), 1):
            assert from_file[name] == {"value": value, "origin": f"{file}, line {number}"}
            assert from_variables[name] == {"value": value, "origin": f"SLICEVOTE_{name.upper()}"}
            assert from_flags[name] == {"value": value, "origin": f"--{name.replace('_', '-')}"}

    def test_flags_come_before_variables_before_the_file_before_defaults(self, tmp_path):
        file = tmp_path / "server.toml"
        file.write_text("threads = 1\nlsh_bits = 64\nlsh = false\n")
        found = effective(
            "--threads", 3, "--lsh", SLICEVOTE_THREADS="2", SLICEVOTE_LSH_BITS="32", SLICEVOTE_CONFIG=str(file)
        )
        assert found["threads"] == {"value": 3, "origin": "--threads"}
        assert found["lsh_bits"] == {"value": 32, "origin": "SLICEVOTE_LSH_BITS"}
        assert found["lsh"] == {"value": True, "origin": "--lsh"}
        assert found["batch_size"] == {"value": 8, "origin": "default"}

    def test_an_empty_variable_is_none(self):
        assert effective(SLICEVOTE_THREADS="", SLICEVOTE_METRICS="")["metrics"] == {"value": None, "origin": "default"}

    def test_what_is_printed_is_a_file_that_gives_the_same(self, tmp_path):
        file = tmp_path / "server.toml"
        flags = [word for name in OTHERS for word in words(name, OTHERS[name])]
        file.write_text(run("settings", *flags).stdout)
        assert tomllib.loads(file.read_text()) == OTHERS
        assert {name: entry["value"] for name, entry in effective("--config", file).items()} == OTHERS


class TestObjects:
    def test_defaults_are_those_of_the_engine_and_the_server(self):
        settings = read(Settings, environment={}).settings
        assert settings.for_engine() == EngineSettings()
        assert settings.for_server() == ServerSettings()

    @pytest.mark.parametrize("name", sorted(OTHERS.keys() - {"data", "backbone", "log_level", "lsh"}))
    def test_every_setting_arrives(self, name):
        settings = read(Settings, environment={}, flags={name: OTHERS[name]}).settings
        assert (settings.for_engine(), settings.for_server()) != (EngineSettings(), ServerSettings())

    def test_every_field_can_be_set(self):
        settings = read(Settings, environment={}, flags=OTHERS).settings

        def untouched(given, default):
            for field in dataclasses.fields(given):
                value, usual = getattr(given, field.name), getattr(default, field.name)
                if dataclasses.is_dataclass(value):
                    yield from untouched(value, usual)
                elif value == usual:
                    yield f"{type(given).__name__}.{field.name}"

        left = {
            *untouched(settings.for_engine(), EngineSettings()),
            *untouched(settings.for_server(), ServerSettings()),
        }
        # It counts what the policy's code does, and is nobody's to choose.
        assert left == {"IntensityPolicy.version"}

    def test_without_the_lsh_index(self):
        assert read(Settings, environment={}, flags={"lsh": False}).settings.for_engine().lsh is None


UNKNOWN_VARIABLE = (
    "the variable SLICEVOTE_TREADS is no setting of the server (did you mean SLICEVOTE_THREADS?); unset or rename it"
)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("listen", "nowhere", "HOST:PORT"),
            ("listen", "host:65536", "HOST:PORT"),
            ("metrics", "9464", "HOST:PORT"),
            ("provider", "gpu", "one of auto, cpu, cuda, tensorrt, openvino, openvino-bf16"),
            ("log_level", "loud", "one of debug, info, warning, error"),
            ("thumbnails", "perhaps", "true or false"),
            ("batch_size", "0", "an integer from 1 to 256"),
            ("threads", "many", "an integer from 0 to 1024"),
            ("smoothing", "nan", "a number from 0 to 10"),
            ("grace_s", "-1", "a number of at least 0"),
            ("ct_window", "300,-200", "two numbers LOW,HIGH with LOW < HIGH"),
            ("ct_window", "300", "two numbers LOW,HIGH with LOW < HIGH"),
            ("percentiles", "1,101", "two numbers LOW,HIGH with 0 <= LOW < HIGH <= 100"),
        ],
    )
    def test_a_bad_value_is_named_with_its_place_and_what_is_allowed(self, tmp_path, name, value, allowed):
        file = tmp_path / "server.toml"
        file.write_text(f"# settings\n\n{name} = {json.dumps(value)}\n")
        upper = f"SLICEVOTE_{name.upper()}"
        assert problems_of(flags={name: value}) == (f"--{name.replace('_', '-')}: '{value}' is not {allowed}",)
        assert problems_of(environment={upper: value}) == (f"{upper}: '{value}' is not {allowed}",)
        assert problems_of(config=file) == (f"{file}, line 3: {name}: '{value}' is not {allowed}",)

    def test_unknown_names_are_refused_with_the_nearest(self, tmp_path):
        file = tmp_path / "server.toml"
        file.write_text("threads = 1\nlsh-bit = 5\n\n[archive]\nm = 3\n")
        assert problems_of(config=file, environment={"SLICEVOTE_TREADS": "2"}) == (
            f"{file}, line 2: lsh-bit: there is no such setting (did you mean lsh_bits?)",
            f"{file}, line 4: archive: there is no such setting",
            UNKNOWN_VARIABLE,
        )

    @pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("threads = ", "is not valid TOML")])
    def test_a_file_that_cannot_be_read_is_refused(self, tmp_path, content, said):
        file = tmp_path / "server.toml"
        if content is not None:
            file.write_text(content)
        (problem,) = problems_of(config=file)
        assert str(file) in problem
        assert said in problem

    def test_a_refused_start_says_so_in_one_line_each_and_ends_with_2(self):
        said = refused("--threads", "many", SLICEVOTE_LSH_BITS="-1", SLICEVOTE_TREADS="2")
        assert sorted(said.splitlines()) == [
            "error: --threads: 'many' is not an integer from 0 to 1024",
            "error: SLICEVOTE_LSH_BITS: '-1' is not an integer from 0 to 65536",
            f"error: {UNKNOWN_VARIABLE}",
        ]

    def test_what_is_required_is_asked_for(self):
        assert refused("--data", "d").splitlines() == [
            "error: --backbone is missing; give it, or set SLICEVOTE_BACKBONE or 'backbone' in the file of --config"
        ]

    def test_variables_of_other_programs_do_not_matter(self):
        """A test of the rule and not of a list: what the other rooms read is looked up in their code."""
        rooms = ("client", "exporters", "evaluation", "gateway", "demo", "benchmarks", "tests")
        sources = [path for room in rooms for path in (ROOT / room).rglob("*.py") if path != Path(__file__)]
        theirs = {name for path in sources for name in re.findall(r"\bSLICEVOTE_[A-Z_]+\b", path.read_text())}
        ours = {entry.variable for entry in describe(Settings)} | {"SLICEVOTE_CONFIG"}
        assert "SLICEVOTE_PATIENT_SECRET" in theirs
        read(Settings, environment=dict.fromkeys(theirs - ours, "x"))

    def test_variables_of_kubernetes_do_not_matter(self):
        environment = {
            "SLICEVOTE_SERVICE_HOST": "10.0.0.1",
            "SLICEVOTE_SERVICE_PORT_GRPC": "50051",
            "SLICEVOTE_PORT": "tcp://10.0.0.1:50051",
            "SLICEVOTE_PORT_50051_TCP_ADDR": "10.0.0.1",
            "SLICEVOTE_GATEWAY_PORT": "tcp://10.0.0.2:80",
        }
        read(Settings, environment=environment)
        assert "SLICEVOTE_PORT" in problems_of(environment={"SLICEVOTE_PORT": "50051"})[0]


class Guarded(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid")

    tokens: SecretStr | None = setting("Access", "Who may come in.", None)


class TestSecrets:
    def test_a_secret_is_masked(self):
        configuration = read(Guarded, environment={"SLICEVOTE_TOKENS": "hush"})
        ((entry, value, origin),) = configuration.effective()
        assert (entry.name, value, origin) == ("tokens", "**********", "SLICEVOTE_TOKENS")
        assert configuration.settings.tokens.get_secret_value() == "hush"

    def test_a_wrong_secret_is_not_repeated(self, tmp_path):
        file = tmp_path / "server.toml"
        file.write_text("tokens = 42424242\n")
        assert problems_of(Guarded, config=file) == (f"{file}, line 1: tokens: the value is not a secret",)


class TestCommandLine:
    def test_help_stands_in_groups_with_the_usual_options_first(self):
        said = run("serve", "-h").stdout
        assert re.findall(r"─ ([\w ]+) ─", said) == [
            "Options",
            "Grey values",
            "Computation",
            "Limits",
            "HNSW graph",
            "LSH index",
        ]
        assert said.index("--data") < said.index("--listen") < said.index("--help") < said.index("Grey values")
        sentences = re.sub(r"[\s│]+", " ", said)
        for entry in describe(Settings):
            assert re.search(rf"{entry.flag}\b", said)
            assert entry.default == "required" or f"Default: {entry.default}." in sentences

    @pytest.mark.parametrize("command", ["serve", "settings", "archive"])
    def test_h_is_help_everywhere(self, command):
        assert f"slicevote-server {command}" in run(command, "-h").stdout

    def test_the_version_needs_no_command(self):
        result = run("--version")
        assert result.returncode == 0
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", result.stdout)

    def test_the_reference_has_a_row_for_every_setting(self):
        for entry in describe(Settings):
            assert entry.group
            assert entry.type
            assert entry.default
            assert entry.description.endswith(".")


class TestStart:
    """What a start that fails says: one sentence on stderr, and no lines of native libraries."""

    def failed(self, tmp_path, backbone, *options):
        result = run("serve", "--data", tmp_path / "data", "--backbone", backbone, "--log-level", "error", *options)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        return line

    def test_a_provider_that_is_not_there(self, tmp_path, tiny_backbone):
        said = self.failed(tmp_path, tiny_backbone, "--provider", "cuda")
        assert "CUDAExecutionProvider cannot be used on this machine" in said
        assert "choose another --provider" in said

    def test_an_address_of_another_machine(self, tmp_path, tiny_backbone):
        assert "choose another with --listen" in self.failed(tmp_path, tiny_backbone, "--listen", "192.0.2.1:50051")

    def test_a_backbone_that_is_not_there(self, tmp_path):
        assert "'slicevote-export NAME --out none.onnx' makes one" in self.failed(tmp_path, tmp_path / "none.onnx")

    def test_a_folder_that_cannot_be_written(self, tmp_path, tiny_backbone):
        (tmp_path / "data").write_text("")
        assert "choose another --data" in self.failed(tmp_path, tiny_backbone)
