"""Losses: tensors in, a scalar out."""

from lavila.losses.captioning import caption_perplexity as caption_perplexity
from lavila.losses.captioning import captioning_loss as captioning_loss
from lavila.losses.captioning import token_accuracy as token_accuracy
from lavila.losses.classification import classification_loss as classification_loss
from lavila.losses.contrastive import contrastive_accuracy as contrastive_accuracy
from lavila.losses.contrastive import contrastive_loss as contrastive_loss
from lavila.losses.contrastive import pseudo_label_contrastive_accuracy as pseudo_label_contrastive_accuracy
from lavila.losses.contrastive import pseudo_label_contrastive_loss as pseudo_label_contrastive_loss
from lavila.losses.max_margin import max_margin_loss as max_margin_loss
