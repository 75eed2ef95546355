"""Prompts: from a task or document to the token ids that go into the model."""

from layertap.prompts.grids import parse_grid_encoder as parse_grid_encoder
from layertap.prompts.samples import MOST_PARTS as MOST_PARTS
from layertap.prompts.samples import PromptMaker as PromptMaker
from layertap.prompts.samples import SplitRules as SplitRules
from layertap.prompts.templates import load_template as load_template
from layertap.prompts.tokenizer import PromptTokenizer as PromptTokenizer
from layertap.prompts.tokenizer import find_tokenizer as find_tokenizer
from layertap.prompts.tokenizer import load_tokenizer as load_tokenizer
