// The grids of a sample, with a value on each cell.
//
// `how` says what to draw: the sample, its values and their scale, the marked token, whether to
// undo the augmentation, what to do when a token is chosen, and the element that holds all of it.

const turned = (rows) => rows[0].map((_, col) => rows.map((row) => row[col]).reverse());

// Turns a grid of a prompt back into that of its task: the inverse of the augmentation.
function undone(rows, augmentation) {
  let made = rows;
  for (let turn = 0; turn < (4 - augmentation.rotations) % 4; turn++) made = turned(made);
  return augmentation.flip ? made.map((row) => [...row].reverse()) : made;
}

function gridToDraw(grid, how) {
  const augmentation = how.sample.origin.augmentation;
  if (!how.undo || !augmentation) return grid.cells;
  return { colours: undone(grid.cells.colours, augmentation).map((row) => row.map((it) => augmentation.colors.indexOf(it))), tokens: undone(grid.cells.tokens, augmentation) };
}

// The pairs of grids with their names, in the order of the prompt or of the task.
function pairsToDraw(how) {
  const pairs = new Map();
  for (const grid of how.sample.grids) pairs.set(grid.pair, [...(pairs.get(grid.pair) ?? []), grid]);
  const order = how.sample.origin.augmentation?.train_order;
  const place = (pair) => (pair === "test" ? Infinity : how.undo && order ? order[pair] : pair);
  return [...pairs].sort(([one], [other]) => place(one) - place(other)).map(([pair, grids]) => ({ pair, grids, name: pair === "test" ? "test" : `example ${place(pair) + 1}` }));
}

function drawPair({ name, grids }, how) {
  const row = make("div", undefined, { class: "pair" });
  for (const grid of grids) row.append(grid.cells ? drawGrid(grid, name, how) : make("p", `${name} ${grid.side}: some of its cells are missing`));
  return row;
}

function drawGrid(grid, name, how) {
  const { colours, tokens } = gridToDraw(grid, how), height = colours.length, width = colours[0].length;
  const title = `${name} ${grid.side}, ${height} rows, ${width} columns`;
  const canvas = make("canvas", undefined, { width: width * CELL + 1, height: height * CELL + 1, tabindex: 0, role: "img", "aria-label": title });
  const context = canvas.getContext("2d");
  colours.forEach((line, row) => line.forEach((color, col) => {
    context.fillStyle = ARC[color];
    context.fillRect(col * CELL, row * CELL, CELL, CELL);
    drawValue(context, col * CELL, row * CELL, how.values[tokens[row][col]], how.scale);
    context.lineWidth = 1;
    context.strokeStyle = "#555555";
    context.strokeRect(col * CELL + 0.5, row * CELL + 0.5, CELL, CELL);
  }));
  tokens.forEach((line, row) => line.forEach((token, col) => token === how.token && markCell(context, col * CELL, row * CELL)));
  listenToGrid(canvas, tokens, how);
  const figure = make("figure");
  figure.append(canvas, make("figcaption", `${name} ${grid.side}`));
  return figure;
}

function drawValue(context, left, top, value, scale) {
  const size = scale.size ? scale.size(value) : 13;
  const square = (color, side) => {
    context.fillStyle = color;
    context.fillRect(left + Math.ceil((CELL - side) / 2), top + Math.ceil((CELL - side) / 2), side, side);
  };
  if (scale.size && size) {
    square("#ffffff", size + 4);
    square("#000000", size + 2);
  }
  if (size) square(scale.color(value), size);
}

// Marks only the corners, so that the cell's colour stays visible.
function markCell(context, left, top) {
  for (const [color, width] of [["#ffffff", 4], ["#0550ae", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    for (const [x, y] of [[2, 2], [CELL - 1, 2], [CELL - 1, CELL - 1], [2, CELL - 1]]) {
      const toX = x === 2 ? x + CORNER : x - CORNER, toY = y === 2 ? y + CORNER : y - CORNER;
      context.moveTo(left + toX, top + y);
      context.lineTo(left + x, top + y);
      context.lineTo(left + x, top + toY);
    }
    context.stroke();
  }
}

function listenToGrid(canvas, tokens, how) {
  const height = tokens.length, width = tokens[0].length, title = canvas.getAttribute("aria-label");
  const choose = async (row, col) => {
    await how.choose(tokens[Math.max(0, Math.min(height - 1, row))][Math.max(0, Math.min(width - 1, col))]);
    [...how.root.querySelectorAll("canvas")].find((it) => it.getAttribute("aria-label") === title)?.focus({ preventScroll: true });
  };
  canvas.addEventListener("click", (event) => {
    const ratio = canvas.width / canvas.getBoundingClientRect().width;
    choose(Math.floor((event.offsetY * ratio) / CELL), Math.floor((event.offsetX * ratio) / CELL));
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    const row = tokens.findIndex((line) => line.includes(how.token)), col = row < 0 ? -1 : tokens[row].indexOf(how.token);
    choose(row < 0 ? 0 : row + move[0], row < 0 ? 0 : col + move[1]);
  });
}

// Says in words where a token is.
function placeOf(token, sample) {
  for (const grid of sample.grids) {
    const row = grid.cells ? grid.cells.tokens.findIndex((line) => line.includes(token)) : -1;
    if (row >= 0) {
      const col = grid.cells.tokens[row].indexOf(token);
      return `${grid.pair === "test" ? "test" : `example ${grid.pair + 1}`} ${grid.side}, row ${row + 1}, column ${col + 1}, colour ${grid.cells.colours[row][col]} (as the prompt shows it)`;
    }
  }
  return "not in a grid";
}
