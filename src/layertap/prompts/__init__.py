"""Prompts: from a task or a document to the token ids that go into the model."""

from layertap.prompts.augment import Augmentation as Augmentation
from layertap.prompts.augment import draw_augmentation as draw_augmentation
from layertap.prompts.chat import ChatTemplate as ChatTemplate
from layertap.prompts.chat import Messages as Messages
from layertap.prompts.expressions import parse_grid_encoder as parse_grid_encoder
from layertap.prompts.grids import GridCodeBlockEncoder as GridCodeBlockEncoder
from layertap.prompts.grids import GridEncoder as GridEncoder
from layertap.prompts.grids import GridShapeEncoder as GridShapeEncoder
from layertap.prompts.grids import GridWithSeparationEncoder as GridWithSeparationEncoder
from layertap.prompts.grids import MinimalGridEncoder as MinimalGridEncoder
from layertap.prompts.grids import RepeatNumberEncoder as RepeatNumberEncoder
from layertap.prompts.grids import ReplaceNumberEncoder as ReplaceNumberEncoder
from layertap.prompts.grids import RowNumberEncoder as RowNumberEncoder
from layertap.prompts.samples import PromptMaker as PromptMaker
from layertap.prompts.samples import Sample as Sample
from layertap.prompts.templates import PROMPT_VERSIONS as PROMPT_VERSIONS
from layertap.prompts.templates import PromptTemplate as PromptTemplate
from layertap.prompts.templates import load_template as load_template
from layertap.prompts.tokenizer import PromptTokenizer as PromptTokenizer
from layertap.prompts.tokenizer import load_tokenizer as load_tokenizer
