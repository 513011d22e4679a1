// A light colouring of code: comments, strings, numbers, keywords. It reads words, not grammars.
import { el } from './dom.js';

const LONGEST = 60000; // characters; longer code is left uncoloured

const words = (text) => new Set(text.split(' '));
const C = 'auto bool break case catch char class const constexpr continue default delete do double else enum explicit '
  + 'extern false float for friend goto if inline int long namespace new nullptr operator private protected public '
  + 'return short signed sizeof static struct switch template this throw true try typedef typename union unsigned '
  + 'using virtual void volatile while include define ifdef ifndef endif';
const JS = 'as async await break case catch class const continue debugger default delete do else export extends false '
  + 'finally for from function get if import in instanceof interface let new null of return set static super switch '
  + 'this throw true try type typeof undefined var void while with yield';
const OTHERS = 'abstract any auto base bool byte chan char data decimal def defer double dyn enum event extension fallthrough '
  + 'final fn float fun func go guard impl implements init int internal is lateinit long loop match mod move mut namespace '
  + 'nil object open operator out override package private protected protocol pub public range ref require sealed self '
  + 'select short sizeof string struct suspend trait unsafe use using val virtual volatile when where';
const PYTHON = 'and as assert async await break class continue def del elif else except False finally for from global if '
  + 'import in is lambda match None nonlocal not or pass raise return self True try while with yield';
const SHELL = 'if then else elif fi for while do done case esac in function return export local echo cd exit set unset '
  + 'source read sudo';
const RUBY = 'alias and begin break case class def do else elsif end ensure false for if in module next nil not or redo '
  + 'rescue retry return self super then true undef unless until when while yield require attr_accessor puts';
const SQL = 'select from where and or not null is in as on join left right inner outer full cross group by order having '
  + 'limit offset insert into values update set delete create table drop alter add primary key foreign references index '
  + 'view distinct union all case when then else end exists between like count sum avg min max with begin commit';
const LUA = 'and break do else elseif end false for function goto if in local nil not or repeat return then true until while';

const SLASHES = '\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)';
const HASH = '(?<![\\w$&{])#[^\\n]*';
const DASHES = '--[^\\n]*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)';
const QUOTED = '"(?:\\\\[\\s\\S]|[^"\\\\\\n])*"?|\'(?:\\\\[\\s\\S]|[^\'\\\\\\n])*\'?';
const TICKED = `${QUOTED}|\`(?:\\\\[\\s\\S]|[^\`\\\\])*\`?`;
const TRIPLE = `"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|${QUOTED}`;

const language = (comment, string, keywords, anyCase = false) => ({ comment, string, keywords: words(keywords), anyCase });
const c = language(SLASHES, QUOTED, C);
const js = language(SLASHES, TICKED, JS);
const rich = language(SLASHES, TICKED, `${C} ${JS} ${OTHERS}`);
const python = language(HASH, TRIPLE, PYTHON);
const shell = language(HASH, QUOTED, SHELL);
const ruby = language(HASH, QUOTED, RUBY);
const sql = language(DASHES, QUOTED, SQL, true);
const lua = language('--\\[\\[[\\s\\S]*?(?:\\]\\]|$)|--[^\\n]*', QUOTED, LUA);
const plain = language(HASH, QUOTED, 'true false null yes no on off');
const css = language('\\/\\*[\\s\\S]*?(?:\\*\\/|$)', QUOTED, 'important media supports import keyframes');
const json = language('(?!)', QUOTED, 'true false null');
const markup = language('<!--[\\s\\S]*?(?:-->|$)', QUOTED, 'DOCTYPE html head body div span script style link meta title p a ul ol li '
  + 'table tr td th h1 h2 h3 form input button img section header footer main nav class id href src type name');

const LANGUAGES = {
  c, h: c, cpp: c, 'c++': c, cc: c, hpp: c, cuda: c, js, javascript: js, jsx: js, mjs: js, ts: rich, typescript: rich, tsx: rich,
  java: rich, kotlin: rich, swift: rich, go: rich, golang: rich, rust: rich, rs: rich, cs: rich, csharp: rich, 'c#': rich, scala: rich,
  php: rich, dart: rich, py: python, python, python3: python, sh: shell, bash: shell, shell, zsh: shell, console: shell,
  rb: ruby, ruby, sql, lua, yaml: plain, yml: plain, toml: plain, ini: plain, makefile: plain, dockerfile: plain, r: plain,
  css, scss: css, json, jsonc: js, html: markup, xml: markup, svg: markup,
};

const patterns = new Map();

function patternOf(rules) {
  if (!patterns.has(rules)) {
    const source = `(?<comment>${rules.comment})|(?<string>${rules.string})`
      + '|(?<number>\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\w{0,3}\\b)|(?<word>[A-Za-z_][\\w]*)';
    patterns.set(rules, new RegExp(source, 'g'));
  }
  return patterns.get(rules);
}

/** -> list of strings and <span class="comment | string | number | keyword"> */
export function colour(code, name) {
  const rules = LANGUAGES[name.toLowerCase()];
  if (!rules || code.length > LONGEST) return [code];
  const nodes = [];
  let done = 0;
  for (const found of code.matchAll(patternOf(rules))) {
    const kind = kindOf(found.groups, rules);
    if (!kind) continue;
    nodes.push(code.slice(done, found.index), el('span', { class: kind }, found[0]));
    done = found.index + found[0].length;
  }
  nodes.push(code.slice(done));
  return nodes;
}

function kindOf(groups, rules) {
  const kind = ['comment', 'string', 'number'].find((each) => groups[each] !== undefined);
  if (kind) return kind;
  return rules.keywords.has(rules.anyCase ? groups.word.toLowerCase() : groups.word) ? 'keyword' : '';
}
