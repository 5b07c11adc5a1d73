"""What a gateway read of the model folder, and what it offers by that and by its nodes. Pure."""

from dataclasses import dataclass

from gateway.admission import Offer
from gateway.pool_view import PoolView
from gateway.tokenize import Tokenizer
from tandem.messages.common import ModelIdentity
from tandem.sampling import GenerationDefaults


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the composition root read."""

    identity: ModelIdentity
    defaults: GenerationDefaults
    tokenizer: Tokenizer

    def offer(self, pools: PoolView) -> Offer:
        """What is served now; the context is the shorter of the gateway's and the nodes'."""
        own, nodes = self.identity.max_model_len, pools.max_model_len
        return Offer(
            model=self.identity.served_name,
            vocab_size=self.identity.vocab_size,
            max_model_len=own if nodes is None else min(own, nodes),
            defaults=self.defaults,
            sla_classes=pools.sla_classes,
            num_labels=self.identity.num_labels,
        )
