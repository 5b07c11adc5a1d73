"""Page digests: the kernel equals its reference, and any change of a page changes them."""

import pytest
import torch

from kernels.page_digest import page_digests, page_digests_reference


def make_pages(num_pages: int, num_words: int, device: torch.device) -> torch.Tensor:
    pages = torch.randint(-(2**31), 2**31 - 1, (num_pages, num_words), dtype=torch.int32)
    return pages.to(device)


@pytest.mark.parametrize("num_words", [1, 7, 1024, 4096, 4097])
def test_kernel_equals_reference(num_words, device):
    pages = make_pages(5, num_words, device)
    indices = torch.tensor([4, 0, 0, 3], dtype=torch.int32, device=device)
    digests = page_digests(pages, indices)
    assert torch.equal(digests, page_digests_reference(pages, indices))
    assert digests[1] == digests[2]


def test_the_digest_is_what_its_formula_says(device):
    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        return x ^ (x >> 16)

    words = [5, 2**32 - 1, 0]
    mixed = [mix(word ^ mix(i + 1)) for i, word in enumerate(words)]
    low = sum(mixed) % 2**32
    high = sum(mix((each + 0x9E3779B9) % 2**32) for each in mixed) % 2**32
    pages = torch.tensor([[5, -1, 0]], dtype=torch.int32, device=device)
    digest = page_digests(pages, torch.zeros(1, dtype=torch.int32, device=device)).item()
    assert digest % 2**64 == (high << 32) | low


def test_changes_are_seen(device):
    page = make_pages(1, 2048, device)[0]
    swapped, flipped, moved = page.clone(), page.clone(), page.roll(1)
    swapped[[3, 1500]] = page[[1500, 3]]
    flipped[777] ^= 1 << 30
    pages = torch.stack([page, swapped, flipped, moved, torch.zeros_like(page)])
    indices = torch.arange(5, dtype=torch.int32, device=device)
    assert len(set(page_digests(pages, indices).tolist())) == 5


def test_no_pages(device):
    none = torch.zeros(0, dtype=torch.int32, device=device)
    assert page_digests(make_pages(2, 8, device), none).shape == (0,)
