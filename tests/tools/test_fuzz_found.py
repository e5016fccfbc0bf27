"""What fuzzing found, one input each: refused with the decoder's own error, where it was another one before."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from aggregator.coordinator.events import Tick
from aggregator.database import Database, Row
from aggregator.journal import SCHEMA_VERSION, Journal, JournalError
from edge_agent.datasets.images import ImageError, read_image
from edge_agent.datasets.layout import MANIFEST, DatasetError, parse_name, read_manifest
from edge_agent.datasets.vectors import read_vector
from edge_agent.power.plug_formats import PlugMessageError, parse_shelly, parse_tasmota
from edge_agent.power.recording import TraceHeader, TraceLine, load_trace
from edge_agent.power.source import PowerSourceError
from edge_agent.trainer import protocol
from models.config import ConfigError, load_toml
from models.tasks import TASKS
from models.trust.certificates import CertificateError, belongs, read_certificate, revoked_serials
from models.trust.parts import serial_text
from models.wire.job import JobSpec
from tools.fuzz import certificates as fixed
from tools.simulate.settings import job_spec

DEEP = 3000


@pytest.mark.parametrize("value", ["[" * DEEP, "{a=" * DEEP, "1" * 5000])
def test_endless_brackets_and_digits_are_no_toml(value: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f"x = {value}\n")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_toml(path, JobSpec)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        job_spec(path, {}, [])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tasks=true", "tasks = True"),
        ("tasks=[[1]]", "tasks"),
        ("train.lr=" + "1" * 5000, "train.lr"),
        ("rounds=" + "9" * 400, "rounds is, or holds, an integer beyond 64 bits"),
        ("options.draw=" + "9" * 400, "options is, or holds"),
    ],
)
def test_settings_of_a_simulation_that_are_none(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_spec(None, {}, [setting])
    assert said in str(caught.value)


@pytest.mark.parametrize("decode", [protocol.from_child, protocol.from_parent])
def test_a_trainer_that_nests_without_end_is_refused(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(protocol.TrainerProtocolError, match="recursion"):
        decode(b"\x81\xa1a" * DEEP)


def test_a_journal_that_nests_without_end_is_damaged(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    database = Database(url, SCHEMA_VERSION)
    database.add([Row(1, 0.0, msgspec.msgpack.encode(Tick())[:0] + b"\x81\xa1a" * DEEP)])
    database.close()
    with Journal(url) as journal, pytest.raises(JournalError, match="event 1 of the journal is damaged"):
        list(journal.replay())


def test_a_plugs_counter_beyond_all_joules_is_no_figure() -> None:
    with pytest.raises(PlugMessageError, match="beyond any number of joules"):
        parse_tasmota(b'{"ENERGY": {"Power": 12, "Total": 1e308}}', None)
    with pytest.raises(PlugMessageError, match="beyond any number of joules"):
        parse_shelly(b'{"apower": 12.5, "aenergy": {"total": 1e308}}', None)


def test_a_label_beyond_float32_is_no_label(tmp_path: Path) -> None:
    path = tmp_path / "label.json"
    path.write_text("1e308")
    with pytest.raises(ImageError, match="beyond float32"):
        read_vector(path, TASKS["distance"])


def test_a_datasets_manifest_that_nests_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"x": ' + "[" * DEEP)
    with pytest.raises(DatasetError, match="recursion"):
        read_manifest(tmp_path)


def test_a_files_name_with_endless_or_foreign_digits_is_none_of_the_layout() -> None:
    assert parse_name(f"point_{'9' * 5000}_view_0_domain_rgb.png") is None
    assert parse_name("point_\u0661_view_0_domain_rgb.png") is None
    assert parse_name("point_1_view_0_domain_rgb.png") == (1, 0, "rgb")


def test_a_picture_is_not_decoded_at_whatever_size_it_tells(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 8193, 8192) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    with pytest.raises(ImageError, match="8193x8192, over"):
        read_image(path, "rgb")


def test_a_trace_that_was_read_without_pause_is_none(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    header = TraceHeader(1, "power", "ina3221", "board", "board", 5e-324)
    path.write_bytes(msgspec.json.encode(header) + b"\n" + msgspec.json.encode(TraceLine(0.0, w=5.0)) + b"\n")
    with pytest.raises(PowerSourceError, match="period_s is"):
        load_trace(path)


def test_a_certificate_whose_key_is_on_no_curve_is_refused() -> None:
    key = fixed.derived_key(fixed.AGENT_KEY)
    assert belongs(key, fixed.pem(fixed.CERTIFICATE, "CERTIFICATE"))
    der = bytearray(fixed.CERTIFICATE)
    point = der.index(b"\x03\x42\x00\x04")  # BIT STRING, 66 bytes, none unused, an uncompressed point
    der[point + 10] ^= 1
    with pytest.raises(CertificateError, match="public key cannot be read"):
        belongs(key, fixed.pem(bytes(der), "CERTIFICATE"))


def test_certificates_and_lists_of_no_known_version_are_refused() -> None:
    for der, label, read in (
        (fixed.CERTIFICATE, "CERTIFICATE", read_certificate),
        (fixed.CRL, "X509 CRL", revoked_serials),
    ):
        version = der.index(b"\x02\x01")
        spoilt = der[: version + 2] + b"\x22" + der[version + 3 :]
        with pytest.raises(CertificateError, match="cannot be read"):
            read(fixed.pem(spoilt, label))
    with pytest.raises(CertificateError, match="below zero"):
        serial_text(-5)


@pytest.mark.parametrize(("period_s", "joules"), [(1e308, 5.0), (0.5, -1e308)])
def test_a_trace_beyond_all_measure_is_none(period_s: float, joules: float, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    header = TraceHeader(1, "counter", "rapl", "cpu", "cpu", period_s, max_power_w=10.0)
    lines = [header, TraceLine(0.0, j=joules), TraceLine(1.0, j=5.0)]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b"\n")
    with pytest.raises(PowerSourceError, match=r"period_s is|beyond"):
        load_trace(path)


def test_the_settings_that_are_sound_still_are() -> None:
    assert job_spec(None, {}, ["scheme=" + "[" * DEEP]).scheme == "[" * DEEP  # a text, if none that names a scheme
    assert job_spec(None, {}, ['tasks="sd"', "rounds=4"]).tasks == ("segment_semantic", "depth_zbuffer")
    assert json.loads(json.dumps(job_spec(None, {}, []).rounds)) == 36
