"""Tenants: the file, exact rates, classes; a file that changes under a running gateway."""

import os
from pathlib import Path

import pytest

from gateway.admission import Rejected
from gateway.tenant_file import TenantFile
from gateway.tenants import Tenant, Tenants, TokenBucket, parse_tenants
from tandem.messages.client import Submit

FILE = """
[tenants.research]
clients = ["alice-laptop", "bob"]
weight = 3
requests_per_s = 2.0
burst = 4
[tenants.batch]
clients = ["nightly"]
classes = ["batch", "standard"]
max_live = 5
"""


@pytest.fixture
def tenants() -> Tenants:
    return Tenants(parse_tenants(FILE), now=0.0)


def test_keys_find_their_tenant_and_strangers_the_default(tenants) -> None:
    assert tenants.of_key("client/alice-laptop") == "research"
    assert tenants.of_key("client/nightly") == "batch"
    assert tenants.of_key("client/eve") == tenants.of_key(None) == "default"
    assert (tenants.weight("research"), tenants.weight("default")) == (3.0, 1.0)
    assert (tenants.max_live("batch"), tenants.max_live("default")) == (5, None)


def test_the_rate_is_kept_and_the_wait_is_exact(tenants) -> None:
    for _ in range(4):
        tenants.take_rate("research", 10.0)
    with pytest.raises(Rejected) as caught:
        tenants.take_rate("research", 10.1)
    assert caught.value.code == "rate_limited"
    wait_s = caught.value.retry_after_s or 0.0
    assert wait_s == pytest.approx(0.4)
    with pytest.raises(Rejected):
        tenants.take_rate("research", 10.1 + wait_s - 1e-3)
    tenants.take_rate("research", 10.1 + wait_s)
    for _ in range(100):
        tenants.take_rate("default", 10.0)


def test_a_bucket_gives_its_rate_in_the_long_run() -> None:
    bucket = TokenBucket(5.0, 3, now=0.0)
    taken = sum(bucket.take(step / 100) == 0.0 for step in range(10_000))
    assert taken == pytest.approx(5.0 * 100 + 3, abs=2)


def test_classes_are_checked_and_the_first_is_the_default(tenants) -> None:
    assert tenants.with_class("batch", Submit(label="")).sla_class == "batch"
    assert tenants.with_class("batch", Submit(label="", sla_class="standard")).sla_class == (
        "standard"
    )
    assert tenants.with_class("research", Submit(label="")).sla_class is None
    with pytest.raises(Rejected, match="'gold': use one of batch, standard"):
        tenants.with_class("batch", Submit(label="", sla_class="gold"))
    with pytest.raises(Rejected, match="not own targets"):
        tenants.with_class("batch", Submit(label="", ttft_ms=1.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenants.a]\nwieght = 2", "wieght"),
        ("[tenants.a]\nweight = 0", "weight"),
        ("[tenants.a]\nrequests_per_s = nan", "requests_per_s"),
        ("[tenants.a]\nburst = 2", "no requests_per_s"),
        ('[tenants.a]\nclients = ["x"]\n[tenants.b]\nclients = ["x"]', "both a and b"),
        ("[tenants.a", "Expected"),
        ("[people]", "people"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_tenants(text)


def test_new_settings_are_no_new_burst(tenants) -> None:
    for _ in range(4):
        tenants.take_rate("research", 0.0)
    tenants.replace(parse_tenants(FILE.replace("weight = 3", "weight = 5")), 0.0)
    assert tenants.weight("research") == 5.0
    with pytest.raises(Rejected):
        tenants.take_rate("research", 0.0)
    tenants.replace({"research": Tenant()}, 0.0)
    tenants.take_rate("research", 0.0)
    assert tenants.weight("batch") == 1.0, "a tenant of requests in flight may be gone"


def test_a_changed_file_is_taken_and_a_bad_one_left(tmp_path: Path, caplog) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(FILE)
    file = TenantFile(str(path))
    assert set(file.tenants) == {"research", "batch"}
    assert file.changed() is None
    path.write_text("[tenants.one]\n")
    assert set(file.changed() or ()) == {"one"}
    assert file.changed() is None
    path.write_text("[tenants.")
    assert file.changed() is None
    assert "the old one stays in force" in caplog.text
    caplog.clear()
    assert file.changed() is None
    assert not caplog.text, "a bad file is complained about once"
    path.unlink()
    assert file.changed() is None
    with pytest.raises(ValueError, match=r"tenants\.toml"):
        TenantFile(str(path))
    assert TenantFile(None).tenants == {}
    assert TenantFile(None).changed() is None
    assert os.listdir(tmp_path) == []
