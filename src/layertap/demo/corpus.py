"""The text that the demo tokenizer learns from when nobody brings another.

A few pages about grids in plain English, in the words that prompts and sample documents are likely to use. Grids
themselves are left out: every digit is a token of its own whatever the corpus says.
"""

_PROSE = """\
You are a helpful assistant. You are given a puzzle made of coloured grids.
A grid is a rectangle of cells, written one row per line; each digit from 0 to 9 stands for a colour.
Every example shows an input grid and the output grid that the hidden rule makes of it.
Find the rule that explains all the examples, then apply the same rule to the test input.
Write the output grid in the same format as the examples, without any explanation.
The output may be larger or smaller than the input, and it may use other colours.
Look at the shape of each object, at its size, at its place and at how often it appears.
Some objects move until they touch a wall, some are turned, mirrored, copied or removed.
Black is the background; blue, red, green, yellow, grey, pink, orange, light blue and brown are the other colours.
A pattern that is broken in one place has to be completed from what remains of it.
The largest object is kept, the smallest is dropped, and the lines between them are drawn again.
Think about symmetry: left and right, top and bottom, rows and columns, the two diagonals.
How many holes does the figure have? The number of cells in the answer is the number of holes.
If two regions overlap, the cells that belong to both take a new colour, the rest stay as they were.
When something falls, it stops at the border or on top of whatever lies below.
Repeat the small picture as a tile, three times in each direction, until the whole frame is filled.
The system message comes first, then the user's turn, then the assistant's.
This is the first training pair of the task; the next pair follows after a blank line.
Here is the test pair, whose answer is not known. What is the correct result, and why?
We read the activations of the model at several layers while it works on such prompts.
They're stored for later study, so it's important that nothing is lost and that we'll find it all again.
"""

_HEADINGS = """\
# Task
## Examples
## Example 1
### Input
### Output
## Test case
### Input
### Output

Example 1:
Input:
Output:

Train pair 2
input: output:
Test pair 1

```grid shape: 3x3
1 012
2 345
3 678
```

```grid
012
345
```

input -> output
[[0, 1, 2], [3, 4, 5]]
{"task_id": "demo", "train": [{"input": [[0]], "output": [[1]]}], "test": []}
"""


def demo_texts() -> list[str]:
    """The texts, always the same ones in the same order."""
    return [_PROSE, _HEADINGS]
