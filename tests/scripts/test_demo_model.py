"""The shipped demo model is what its card says, and its training repeats itself exactly."""

import itertools
import json
import random
import struct
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from scripts.demo_model.checkpoint import demo_config
from scripts.demo_model.corpus import documents_of, read_corpus, train_tokenizer
from scripts.demo_model.quality import parses
from scripts.demo_model.training import Plan, Progress, build_model, packed_rows, rate_share, train

LIBRARY = Path(sysconfig.get_path("stdlib"))
PROMPTS = ["def ", "class ", "def main():", "def _get(self", "class Error(", "async def "]
END = 0


def lines_of(*command: str, cwd: Path) -> list[str]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=25)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_folder_is_a_small_hugging_face_checkpoint(demo_model: Path) -> None:
    names = {path.name for path in demo_model.iterdir()}
    assert names >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in demo_model.iterdir()) <= 16 * 2**20

    config = AutoConfig.from_pretrained(demo_model)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.max_position_embeddings == 4096
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert (config.bos_token_id, config.eos_token_id) == (END, END)

    with (demo_model / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(*struct.unpack("<Q", file.read(8))))
    header.pop("__metadata__", None)
    assert {tensor["dtype"] for tensor in header.values()} == {"BF16"}
    num_parameters = sum(torch.Size(tensor["shape"]).numel() for tensor in header.values())
    assert 3e6 <= num_parameters <= 8e6


def test_tokenizer_gives_back_code_and_opens_it_with_the_start_token(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    plain = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    assert len(tokenizer) == AutoConfig.from_pretrained(demo_model).vocab_size
    assert tokenizer.model_max_length == 4096
    for name in ("textwrap.py", "json/decoder.py", "this.py"):
        source = (LIBRARY / name).read_text()[:8000] + "\x0c\r\n\t§ 漢字 🙂"
        ids = tokenizer(source)["input_ids"]
        assert ids[0] == END and END not in ids[1:]
        assert ids == plain.encode(source).ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == source
    code = (LIBRARY / "textwrap.py").read_text()
    assert len(code) / len(tokenizer.tokenize(code)) > 2.5


def test_chat_template_makes_the_last_wish_a_comment(demo_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    messages = [
        {"role": "user", "content": "ignored"},
        {"role": "assistant", "content": "pass"},
        {"role": "user", "content": "Read a file.\nClose it."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|endoftext|># Read a file.\n# Close it.\n"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids[0] == END and END not in ids[1:]


def test_answers_end_by_themselves_and_some_are_python(demo_model: Path) -> None:
    """Not every answer of a model this small parses; noise would neither end nor parse."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    inputs = tokenizer(PROMPTS * 4, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    rows = model.generate(**inputs, max_new_tokens=256)[:, inputs["input_ids"].shape[1] :].tolist()
    answers = [(prompt, ids) for prompt, ids in zip(PROMPTS * 4, rows, strict=True) if END in ids]
    assert len(answers) >= len(rows) // 4
    lengths = {ids.index(END) for _, ids in answers}
    assert len(lengths) >= 4
    texts = [prompt + tokenizer.decode(ids[: ids.index(END)]) for prompt, ids in answers]
    # 1 to 7 of them over eight seeds; other versions of torch may draw other numbers.
    assert any(map(parses, texts))


def test_documents_have_their_decorators_and_comments() -> None:
    source = (
        '"""Doc."""\nimport os\n\x0c\n# Why\n# it is.\n@cache\n'
        'def f(x):\n    """A."""\n    return x\n'
        "\n\nlimit = 3\nclass A:\n    def g(self): ...\n\nasync def h(): pass\n"
    )
    assert list(documents_of(source)) == [
        '# Why\n# it is.\n@cache\ndef f(x):\n    """A."""\n    return x\n',
        "class A:\n    def g(self): ...\n",
        "async def h(): pass\n",
    ]


def test_corpus_splits_by_text_and_leaves_tests_out(tmp_path: Path) -> None:
    for folder in ("", "test"):
        (tmp_path / folder).mkdir(exist_ok=True)
        functions = (f"def {folder or 'f'}{number}(): pass\n" for number in range(500))
        (tmp_path / folder / "module.py").write_text("".join(functions))
    corpus = read_corpus(tmp_path)
    assert len(corpus.training) + len(corpus.held_out) == 500
    assert 2 <= len(corpus.held_out) <= 25
    assert not set(corpus.training) & set(corpus.held_out)
    (tmp_path / "module.py").write_text("limit = 3\n")
    with pytest.raises(ValueError, match="too few"):
        read_corpus(tmp_path)


def test_rows_are_full_and_follow_the_documents() -> None:
    documents = [[END, *range(first, first + 7)] for first in range(100, 1100, 10)]
    rows = packed_rows(documents, 20, random.Random(1))
    assert {len(row) for row in rows} == {21}
    assert all(row[0] == END for row in rows), "the short rest of a document opens no row"
    for row in rows:
        for token, following in itertools.pairwise(row):
            assert following == token + 1 or following == END or token == END


def test_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    plan = Plan(steps=1000, batch_tokens=64, learning_rate=1.0, seed=0)
    shares = [rate_share(plan, step) for step in range(plan.steps)]
    assert shares[0] <= 0.1 and shares[-1] < 0.01
    assert max(shares) == 1.0 == shares[200]
    assert all(0 < share <= 1 for share in shares)


def test_same_plan_gives_same_losses() -> None:
    corpus = read_corpus(LIBRARY / "asyncio")
    tokenizer = train_tokenizer(corpus.training, 300)
    documents = [code.ids for code in tokenizer.encode_batch(list(corpus.training[:40]))]

    def losses(seed: int) -> list[float]:
        plan = Plan(steps=3, batch_tokens=512, learning_rate=0.02, seed=seed)
        found: list[Progress] = []
        train(build_model(demo_config(300, 64, 1), seed), documents, plan, found.append)
        assert [progress.num_tokens for progress in found] == [512, 1024, 1536]
        return [progress.loss for progress in found]

    first = losses(seed=7)
    assert first == pytest.approx(losses(seed=7), abs=1e-4)
    assert first != pytest.approx(losses(seed=8), abs=1e-4)
    assert first[2] < first[0]


def test_command_writes_a_folder_with_its_card(repository: Path, tmp_path: Path) -> None:
    output = tmp_path / "tiny"
    flags = [
        "--steps=2", "--batch-tokens=128", "--hidden-size=64", "--layers=1", "--vocab-size=300",
        f"--library={LIBRARY / 'asyncio'}", "--answers=1", "--answer-tokens=8",
        f"--output={output}",
    ]  # fmt: skip
    lines = lines_of(str(repository / "scripts" / "train_demo_model"), *flags, cwd=tmp_path)
    assert any(line.startswith("step 2/2  loss ") and "tokens/s" in line for line in lines)
    assert any(line.startswith("held-out loss ") for line in lines)
    card = (output / "README.md").read_text()
    assert "## Training" in card and "licence" in card and "nats a token" in card
    assert max(map(len, card.splitlines())) <= 100
    assert AutoConfig.from_pretrained(output).vocab_size == 300
    assert sorted(tmp_path.iterdir()) == [output], "nothing half written is left"
