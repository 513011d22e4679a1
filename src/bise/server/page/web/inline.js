// Markdown within a line: text -> DOM nodes. One pass, a bounded stack, nothing that can go quadratic.
import { el } from './dom.js';

const DEEPEST = 32; // open brackets and stars at once; what comes beyond them is shown as it stands
const PLAIN = /(?:(?!https?:\/\/)[^\\`*_~[\]!<\n])+/y;
const TICKS = /`+/y;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
const ADDRESS = /\(\s{0,9}(<[^<>\n]{0,2000}>|[^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,4})(?:\s{1,9}(?:"[^"]{0,500}"|'[^']{0,500}'))?\s{0,9}\)/y;
const ANGLED = /<(https?:\/\/[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>"`|]{1,2000}/y;
const WORD = /[\p{L}\p{N}]/u;
const EMPHASIS = { '*': ['em', 'strong'], _: ['em', 'strong'], '~': [null, 's'] };

/** -> DocumentFragment */
export function inline(source) {
  return new Line(source).nodes();
}

/** Only absolute http and https addresses lead anywhere; anything else stays text. */
export function webAddress(address) {
  try {
    const url = new URL(address);
    return url.protocol === 'http:' || url.protocol === 'https:' ? url.href : null;
  } catch {
    return null;
  }
}

class Line {
  constructor(source) {
    this.source = source;
    this.at = 0;
    this.frames = [{ mark: '', literal: '', nodes: [] }]; // the first is the line itself
    this.unpaired = new Set(); // lengths of backtick runs that have no partner further on
  }

  nodes() {
    while (this.at < this.source.length) this.#next();
    this.#fold(1);
    const fragment = document.createDocumentFragment();
    fragment.append(...this.frames[0].nodes);
    return fragment;
  }

  #match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.source);
    if (found) this.at += found[0].length;
    return found;
  }

  #push(...nodes) {
    this.frames.at(-1).nodes.push(...nodes);
  }

  #next() {
    const plain = this.#match(PLAIN);
    if (plain) return this.#push(plain[0]);
    const c = this.source[this.at];
    if (c === '\\') return this.#backslash();
    if (c === '`') return this.#code();
    if (c in EMPHASIS) return this.#run(c);
    if (c === '[' || (c === '!' && this.source[this.at + 1] === '[')) return this.#bracket(c);
    if (c === ']') return this.#link();
    const address = c === '<' ? this.#match(ANGLED)?.[1] : c === 'h' ? this.#bare() : null;
    if (address) return this.#push(anchor(address, [address]));
    this.at += 1;
    this.#push(c === '\n' ? el('br') : c);
  }

  #backslash() {
    const found = this.#match(ESCAPED);
    this.at += found ? 0 : 1;
    this.#push(found ? found[1] : '\\');
  }

  #code() {
    const [ticks] = this.#match(TICKS);
    const end = this.unpaired.has(ticks.length) ? -1 : partner(this.source, this.at, ticks.length);
    if (end < 0) {
      this.unpaired.add(ticks.length);
      return this.#push(ticks);
    }
    const code = this.source.slice(this.at, end).replace(/\n/g, ' ');
    this.at = end + ticks.length;
    this.#push(el('code', {}, /^ .*[^ ].* $/.test(code) ? code.slice(1, -1) : code));
  }

  /** A run of stars, underscores or tildes: closes what it can, opens with the rest. */
  #run(mark) {
    const begin = this.at;
    while (this.source[this.at] === mark) this.at += 1;
    const [before, after] = [this.source[begin - 1] ?? ' ', this.source[this.at] ?? ' '];
    const inWord = mark === '_' && WORD.test(before) && WORD.test(after);
    let left = this.at - begin;
    if (!/\s/.test(before) && !inWord) left = this.#close(mark, left);
    if (left && !/\s/.test(after) && !inWord && this.frames.length < DEEPEST) {
      this.frames.push({ mark, literal: mark.repeat(left), nodes: [] });
    } else if (left) this.#push(mark.repeat(left));
  }

  #close(mark, left) {
    while (left) {
      const index = this.frames.findLastIndex((frame) => frame.mark === mark);
      if (index < 0) return left;
      const frame = this.frames[index];
      const use = left >= 2 && frame.literal.length >= 2 ? 2 : 1;
      const name = EMPHASIS[mark][use - 1];
      if (!name) return left;
      this.#fold(index + 1);
      const node = el(name, {}, frame.nodes);
      frame.literal = frame.literal.slice(use);
      frame.nodes = [];
      if (frame.literal) frame.nodes = [node];
      else this.frames.pop(), this.#push(node);
      left -= use;
    }
    return 0;
  }

  #bracket(c) {
    const literal = c === '!' ? '![' : '[';
    this.at += literal.length;
    if (this.frames.length < DEEPEST) this.frames.push({ mark: '[', literal, nodes: [] });
    else this.#push(literal);
  }

  #link() {
    this.at += 1;
    const index = this.frames.findLastIndex((frame) => frame.mark === '[');
    if (index < 0) return this.#push(']');
    const found = this.source[this.at] === '(' ? this.#match(ADDRESS) : null;
    if (!found) {
      this.frames[index].mark = ''; // it cannot open a link any more
      return this.#push(']');
    }
    this.#fold(index + 1);
    const { literal, nodes } = this.frames.pop();
    const address = found[1].replace(/^<|>$/g, '');
    const shown = literal === '![' ? ['[image: ', ...nodes, ']'] : nodes; // an image is never fetched
    if (webAddress(address)) this.#push(anchor(address, shown));
    else this.#push(...shown, ` (${address})`);
  }

  #bare() {
    if (this.at && WORD.test(this.source[this.at - 1])) return null;
    const found = this.#match(BARE);
    if (!found) return null;
    let address = found[0].replace(/[.,;:!?*_~'\]]+$/, '');
    if (address.endsWith(')') && !address.includes('(')) address = address.slice(0, -1);
    this.at -= found[0].length - address.length;
    return address;
  }

  /** What was opened at `from` and above and never closed is text. */
  #fold(from) {
    const open = this.frames.splice(from);
    for (const frame of open) this.#push(frame.literal, ...frame.nodes);
  }
}

function partner(source, from, length) {
  for (const run of source.slice(from).matchAll(/`+/g)) if (run[0].length === length) return from + run.index;
  return -1;
}

function anchor(address, nodes) {
  const href = webAddress(address);
  if (!href) return document.createTextNode(address);
  return el('a', { href, title: href, target: '_blank', rel: 'noopener noreferrer nofollow' }, nodes);
}
