// Markdown from a stranger: text -> DOM nodes, built one by one. HTML in it is text, images are never fetched.
import { colour } from './code.js';
import { el } from './dom.js';
import { inline } from './inline.js';

const DEEPEST = 8; // quotes and lists in one another; what lies deeper is a paragraph
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\*\s*){3,}|(?:-\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(\s+|$)/;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const blank = (line) => line.trim() === '';

/** The whole text -> list of nodes. */
export function render(text, depth = 0) {
  return split(text).map((block) => draw(block, depth));
}

/** A text that grows: only the last block is drawn again. */
export class Live {
  constructor(box) {
    this.box = box;
    this.text = '';
    this.last = 0; // where the last block begins
    this.settled = 0; // nodes before it
  }

  show(text) {
    if (!text.startsWith(this.text.slice(0, this.last))) Object.assign(this, { last: 0, settled: 0 });
    const blocks = split(text.slice(this.last));
    while (this.box.childNodes.length > this.settled) this.box.lastChild.remove();
    this.box.append(...blocks.map((block) => draw(block, 0)));
    if (blocks.length) {
      this.settled += blocks.length - 1;
      this.last += blocks.at(-1).start;
    }
    this.text = text;
  }
}

/** -> [{kind, lines, start}]; start is an offset in the text. A block's end depends on nothing before its start. */
function split(text) {
  const lines = text.split('\n');
  const starts = offsets(text);
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) at += 1;
    else {
      const kind = kindOf(lines, at);
      const end = ends[kind](lines, at);
      blocks.push({ kind, lines: lines.slice(at, end), start: starts[at] });
      at = end;
    }
  }
  return blocks;
}

function offsets(text) {
  const starts = [0];
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) starts.push(at + 1);
  return starts;
}

function kindOf(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return 'fence';
  if (HEADING.test(line)) return 'heading';
  if (RULE.test(line)) return 'rule';
  if (QUOTE.test(line)) return 'quote';
  if (ITEM.test(line)) return 'list';
  if (line.includes('|') && DELIMITERS.test(lines[at + 1] ?? '') && lines[at + 1].includes('-')
      && cells(line).length === cells(lines[at + 1]).length) return 'table';
  return 'paragraph';
}

/** Where each kind of block that begins at `at` ends. */
const ends = {
  fence(lines, at) {
    const close = closing(lines[at].match(FENCE)[1]);
    return Math.min(until(lines, at + 1, (line) => close.test(line)) + 1, lines.length);
  },
  heading: (_, at) => at + 1,
  rule: (_, at) => at + 1,
  quote: (lines, at) => until(lines, at + 1, (line) => !QUOTE.test(line)),
  table: (lines, at) => until(lines, at + 2, (line) => blank(line) || !line.includes('|')),
  paragraph: (lines, at) => until(lines, at + 1, (line, i) => blank(line) || interrupts(lines, i)),
  list(lines, at) {
    const marker = sameMarker(lines[at]);
    let end = at + 1;
    for (let i = at + 1; i < lines.length; i += 1) {
      if (blank(lines[i])) continue;
      const item = lines[i].match(ITEM);
      const inside = /^(?: {2}|\t)/.test(lines[i]) || (item && !RULE.test(lines[i]) && sameMarker(lines[i]) === marker);
      const lazy = !item && !blank(lines[i - 1]) && !interrupts(lines, i);
      if (!inside && !lazy) break;
      end = i + 1;
    }
    return end;
  },
};

const closing = (marks) => new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
const sameMarker = (line) => line.match(ITEM)[2].replace(/\d+/, '1');

function until(lines, from, stop) {
  let end = from;
  while (end < lines.length && !stop(lines[end], end)) end += 1;
  return end;
}

function interrupts(lines, at) {
  const kind = kindOf(lines, at);
  return kind !== 'paragraph' && !(kind === 'list' && /^\s*(?!1[.)])\d/.test(lines[at]));
}

function draw({ kind, lines }, depth) {
  if (depth >= DEEPEST) return paragraph(lines);
  return drawings[kind](lines, depth);
}

const paragraph = (lines) => el('p', {}, inline(lines.map((line) => line.trim()).join('\n')));

const drawings = {
  paragraph,
  rule: () => el('hr'),
  heading(lines) {
    const [, marks, text] = lines[0].match(HEADING);
    return el(`h${Math.min(marks.length + 1, 6)}`, {}, inline(text ?? '')); // the page has the only h1
  },
  fence(lines) {
    const [, marks, info] = lines[0].match(FENCE);
    const closed = lines.length > 1 && closing(marks).test(lines.at(-1));
    return codeBlock(lines.slice(1, closed ? -1 : undefined).join('\n'), info.trim().split(/\s/)[0].slice(0, 30));
  },
  quote(lines, depth) {
    return el('blockquote', {}, render(lines.map((line) => line.replace(QUOTE, '')).join('\n'), depth + 1));
  },
  list(lines, depth) {
    const number = lines[0].match(/^\s*(\d+)/)?.[1];
    const name = number === undefined ? 'ul' : 'ol';
    const start = number && number !== '1' ? { start: number } : {};
    return el(name, start, items(lines).map((item) => listItem(item, depth)));
  },
  table(lines) {
    const sides = cells(lines[1]).map((cell) => (cell.endsWith(':') ? (cell.startsWith(':') ? 'centre' : 'right') : null));
    const row = (line, name) => el('tr', {}, sides.map((side, i) => el(name, { class: side }, inline(cells(line)[i] ?? ''))));
    const body = lines.slice(2).map((line) => row(line, 'td'));
    const table = el('table', {}, el('thead', {}, row(lines[0], 'th')), el('tbody', {}, body));
    return el('div', { class: 'table', tabindex: 0, role: 'group', 'aria-label': 'Table' }, table);
  },
};

function items(lines) {
  const found = [];
  for (const line of lines) {
    const item = line.match(ITEM);
    if (item && (found.length === 0 || item[1].length < 2)) {
      const indent = Math.min(item[0].length, item[1].length + item[2].length + 1);
      found.push({ indent, lines: [line.slice(item[0].length)] });
    } else {
      const { indent, lines: own } = found.at(-1);
      own.push(line.slice(Math.min(indent, line.search(/\S|$/))));
    }
  }
  return found;
}

function listItem({ lines }, depth) {
  const blocks = split(lines.join('\n'));
  const tight = blocks.length > 0 && blocks[0].kind === 'paragraph' && !lines.some((line, i) => i && blank(line) && i < lines.length - 1);
  if (!tight) return el('li', {}, blocks.map((block) => draw(block, depth + 1)));
  const first = inline(blocks[0].lines.map((line) => line.trim()).join('\n'));
  return el('li', {}, first, blocks.slice(1).map((block) => draw(block, depth + 1)));
}

/** The cells of a table's row; `\|` does not part them. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '');
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll('\\|', '|'));
}

function codeBlock(code, language) {
  const head = el('figcaption', {}, el('span', {}, language || 'text'),
    el('button', { type: 'button', class: 'quiet', 'data-copy': 'code' }, 'Copy'));
  const pre = el('pre', { tabindex: 0, 'aria-label': `Code${language ? `, ${language}` : ''}` }, el('code', {}, colour(code, language)));
  return el('figure', { class: 'code' }, head, pre);
}
