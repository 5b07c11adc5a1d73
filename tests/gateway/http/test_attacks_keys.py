"""HTTP attacks on keys and between tenants (H11, H16)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.bearer import add_key, remove_key
from tandem.keys import KeyFolder
from tests.gateway.http.running import COMPLETION, HttpGateway, make_model

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
OPEN = {("GET", "/health"), ("HEAD", "/health"), ("GET", "/ready"), ("HEAD", "/ready")}
TENANTS = """
[tenants.red]
clients = ["alice"]
[tenants.blue]
clients = ["bob"]
"""


class Keyed:
    """A gateway with keys, and three callers' keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gateway: HttpGateway
        self.alice = add_key(folder, "alice", "client")
        self.bob = add_key(folder, "bob", "client")
        self.operator = add_key(folder, "olga", "operator")

    def ask(self, method: str, path: str, key: str | None, body: object = None):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self.gateway.ask(method, path, body, headers)


@pytest.fixture(scope="module")
def keyed(tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("deployment")
    keys, tenants = folder / "keys", folder / "tenants.toml"
    KeyFolder.complete(keys, [("gateway", "gw"), ("node", "p0"), ("node", "d0")])
    tenants.write_text(TENANTS)
    settings = {"keys": str(keys), "tenants": str(tenants)}
    made = Keyed(keys)
    with HttpGateway(make_model(tokenizer), settings) as made.gateway:
        made.gateway.warm_up(made.alice)
        yield made


def test_h11_every_route_and_method_needs_a_key(keyed: Keyed) -> None:
    paths = [*keyed.ask("GET", "/openapi.json", keyed.alice).json["paths"], "/", "/nothing"]
    for path in paths:
        for method in METHODS:
            if (method, path) not in OPEN:
                answer = keyed.ask(method, path, None)
                assert answer.status == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
    assert keyed.ask("GET", "/health", None).status == 200


def test_h11_wrong_keys_are_told_nothing_else(keyed: Keyed) -> None:
    key = keyed.alice
    wrong = [
        "", "x", key[:-1], key + "a", key.upper(), f"{key} {key}", f'"{key}"', "é" * 20, "\x80\xff",
        "a" * 40_000, "*", "alice",
    ]  # fmt: skip
    headers = [{"authorization": f"Bearer {each}"} for each in wrong]
    headers += [
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"authorization": f"Bearer{key}"},
        {"authorization": "Bearer x\r\nauthorization: Bearer " + key},
        {"x-api-key": key},
    ]
    for each in headers:
        answer = keyed.gateway.ask("GET", "/v1/models", headers=each)
        assert answer.status == 401, each
        assert answer.error["code"] == "invalid_api_key"
    too_large = {"authorization": "Bearer " + "a" * (1 << 20)}
    assert keyed.gateway.ask("GET", "/v1/models", headers=too_large).status == 431
    assert keyed.ask("GET", f"/v1/models?key={key}", None).status == 401
    answer = keyed.gateway.ask("GET", "/version", headers={"authorization": f"bearer {key}"})
    assert answer.status == 200, "the scheme's case does not matter"


def test_h4_no_spelling_of_a_path_gets_past_the_key(keyed: Keyed) -> None:
    tricks = (
        "//v1/models", "/v1/..;/v1/models", "/health/../v1/models", "/health/..%2fv1/models",
        "/health%00/v1/models", "/health?/v1/models", "/health#/v1/models", "/%68ealth/../version",
        "/HEALTH", "/health/", "/ready;/version", "http://x/v1/models", "http://health/version",
    )  # fmt: skip
    for path in tricks:
        answer = keyed.gateway.ask("GET", path, headers={"host": "health"})
        is_health = answer.status == 200 and answer.json == {"status": "ok"}
        assert answer.status in (400, 401) or is_health, path


def test_roles_open_what_is_theirs(keyed: Keyed) -> None:
    assert keyed.ask("GET", "/v1/models", keyed.alice).status == 200
    refused = keyed.ask("GET", "/v1/models", keyed.operator)
    assert (refused.status, refused.error["type"]) == (403, "permission_error")
    assert keyed.ask("GET", "/metrics", keyed.operator).status == 200
    assert keyed.ask("GET", "/metrics", keyed.alice).status == 403


def test_keys_come_and_go_without_a_restart(keyed: Keyed) -> None:
    eve = add_key(keyed.folder, "eve", "client")

    def status() -> int:
        return keyed.ask("GET", "/version", eve).status

    keyed.gateway.until_there(lambda: status() == 200)
    remove_key(keyed.folder, "eve")
    keyed.gateway.until_there(lambda: status() == 401)
    assert keyed.ask("GET", "/version", keyed.alice).status == 200


def test_h16_tenants_share_no_prefix(keyed: Keyed) -> None:
    """Pages are found by hashes that the tenant is part of: what one has cached helps no other."""
    body = COMPLETION | {"prompt": list(range(5, 45))}
    prefixes = {}
    for name, key in (("alice", keyed.alice), ("bob", keyed.bob), ("alice again", keyed.alice)):
        assert keyed.ask("POST", "/v1/completions", key, body).status == 200
        place = keyed.gateway.run(lambda: keyed.gateway.cluster.places[-1])
        prefixes[name] = (place.tenant, place.prefix_hashes.data)
    assert prefixes["alice"] == prefixes["alice again"]
    assert prefixes["alice"][0] == "red"
    assert prefixes["bob"][0] == "blue"
    red, blue = ({p[1][at : at + 8] for at in range(0, len(p[1]), 8)} for p in
                 (prefixes["alice"], prefixes["bob"]))  # fmt: skip
    assert len(red) == len(blue) >= 9
    assert not red & blue
