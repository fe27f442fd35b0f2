/** LaTeX formulas as MathML, which browsers draw themselves. All text is escaped, and every element and attribute is written here. */

import { escaped, words } from "./clean.js";

const TOKEN = /\\(?:operatorname\*|[a-z]+|[^])|\s+|\d+(?:\.\d+)?|[^]/giu;
const [LONGEST, DEEPEST] = [4000, 60];
const pairs = (text) => Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split("=")));

// Names of letters and signs. sympy and textbooks use these.
const LETTERS = pairs(
  "alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι kappa=κ lambda=λ mu=μ nu=ν xi=ξ omicron=ο " +
    "pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ " +
    "Pi=Π Sigma=Σ Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω infty=∞ partial=∂ nabla=∇ hbar=ℏ ell=ℓ Re=ℜ Im=ℑ aleph=ℵ emptyset=∅ varnothing=∅ imath=ı jmath=ȷ " +
    "top=⊤ bot=⊥ degree=° circ=∘ prime=′",
);
const SIGNS = pairs(
  "cdot=⋅ times=× div=÷ pm=± mp=∓ ast=∗ star=⋆ bullet=∙ oplus=⊕ ominus=⊖ otimes=⊗ odot=⊙ cap=∩ cup=∪ vee=∨ lor=∨ wedge=∧ land=∧ neg=¬ lnot=¬ " +
    "setminus=∖ le=≤ leq=≤ leqslant=⩽ ge=≥ geq=≥ geqslant=⩾ ne=≠ neq=≠ equiv=≡ approx=≈ sim=∼ simeq=≃ cong=≅ propto=∝ ll=≪ gg=≫ in=∈ notin=∉ ni=∋ " +
    "subset=⊂ subseteq=⊆ supset=⊃ supseteq=⊇ mid=∣ parallel=∥ perp=⊥ vdash=⊢ models=⊨ to=→ rightarrow=→ leftarrow=← leftrightarrow=↔ mapsto=↦ " +
    "Rightarrow=⇒ implies=⟹ Leftarrow=⇐ Leftrightarrow=⇔ iff=⟺ longrightarrow=⟶ uparrow=↑ downarrow=↓ forall=∀ exists=∃ therefore=∴ because=∵ " +
    "ldots=… dots=… cdots=⋯ vdots=⋮ ddots=⋱ dotsc=… dotsb=⋯ colon=: lbrace={ rbrace=} langle=⟨ rangle=⟩ lfloor=⌊ rfloor=⌋ lceil=⌈ rceil=⌉ lvert=| rvert=| " +
    "vert=| lVert=‖ rVert=‖ Vert=‖ backslash=\\ {={ }=} |=‖ %=% $=$ #=# &=& _=_",
);
const LARGE = pairs("sum=∑ prod=∏ coprod=∐ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigotimes=⨂ bigvee=⋁ bigwedge=⋀");
const INTEGRALS = pairs("int=∫ iint=∬ iiint=∭ oint=∮");
const LIMITS = words("lim limsup liminf max min sup inf argmax argmin det gcd Pr");
const FUNCTIONS = words(
  "sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan asin acos atan log ln lg exp ker dim hom arg deg sgn sign tr Tr",
);
const SPACES = { ",": 0.17, ":": 0.22, ">": 0.22, ";": 0.28, "!": 0, " ": 0.3, quad: 1, qquad: 2, thinspace: 0.17, enspace: 0.5 };
const ABOVE = pairs("hat=^ widehat=^ bar=¯ overline=¯ vec=→ overrightarrow=→ dot=˙ ddot=¨ tilde=~ widetilde=~ overbrace=⏞ check=ˇ breve=˘ acute=´");
const BELOW = pairs("underline=_ underbrace=⏟");
const FENCES = { matrix: "", smallmatrix: "", pmatrix: "()", bmatrix: "[]", Bmatrix: "{}", vmatrix: "||", Vmatrix: "‖‖", cases: "{", array: "" };
const ALIGNED = words("align aligned eqnarray split alignat gather gathered multline equation");
const ALPHABETS = { mathbb: 0x1d538, mathcal: 0x1d49c, mathscr: 0x1d49c, mathfrak: 0x1d504, mathbf: 0x1d400, boldsymbol: 0x1d400, bm: 0x1d400, mathsf: 0x1d5a0, mathtt: 0x1d670 };
const ELSEWHERE = { // letters that Unicode had before it had these alphabets
  0x1d538: pairs("C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ"),
  0x1d49c: pairs("B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ e=ℯ g=ℊ o=ℴ"),
  0x1d504: pairs("C=ℭ H=ℌ I=ℑ R=ℜ Z=ℨ"),
};
const UPRIGHT = words("mathrm text textrm textbf textit texttt mbox operatorname operatorname* mathop mathit textnormal");
const SIZES = /^[bB]ig+[lrm]?$/;
const IGNORED = words("limits nolimits displaystyle textstyle scriptstyle nonumber notag mathstrut");

/** The MathML of a formula, or its source as code if it has something that is not known here. */
export function formula(source, isBlock) {
  try {
    if (source.length > LONGEST) throw new SyntaxError("too long");
    const reader = new Reader(source);
    const content = reader.row(() => false);
    return `<math${isBlock ? ' display="block"' : reader.isLarge ? ' displaystyle="true"' : ""}>${content}</math>`;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return `<code>${escaped(source.trim())}</code>`;
  }
}

const mo = (text, attributes = "") => `<mo${attributes}>${escaped(text)}</mo>`;
const group = (content) => `<mrow>${content}</mrow>`;

class Reader {
  constructor(source) {
    this.tokens = source.match(TOKEN) ?? [];
    this.depth = 0;
    this.isLarge = source.includes("\\displaystyle");
  }

  get next() {
    return this.tokens[0];
  }

  take() {
    if (!this.tokens.length) throw new SyntaxError("the formula ends too early");
    return this.tokens.shift();
  }

  skipSpace() {
    while (this.next !== undefined && !this.next.trim()) this.tokens.shift();
  }

  /** Read atoms with their scripts, up to a token at which `isEnd`; the token stays. */
  row(isEnd) {
    if ((this.depth += 1) > DEEPEST) throw new SyntaxError("too deep");
    let made = "";
    for (this.skipSpace(); this.next !== undefined && !isEnd(this.next); this.skipSpace()) {
      if ("}&".includes(this.next) || this.next === "\\right" || this.next === "\\end") throw new SyntaxError(`stray ${this.next}`);
      made += this.scripted(this.atom());
    }
    this.depth -= 1;
    return made;
  }

  /** A group in braces, or one atom. */
  argument() {
    this.skipSpace();
    if (this.next?.length > 1 && /^\d/.test(this.next)) this.tokens.splice(0, 1, this.next[0], this.next.slice(1)); // x^23 is x²3
    if ((this.depth += 1) > DEEPEST) throw new SyntaxError("too deep");
    const made = group(this.atom().made);
    this.depth -= 1;
    return made;
  }

  /** The text of a group, without its braces. */
  text() {
    this.skipSpace();
    let [text, open] = ["", 0];
    do {
      const token = this.take();
      if (token === "{") open += 1;
      else if (token === "}") open -= 1;
      else text += token === "\\ " || token === "~" ? " " : token.replace(/^\\(?=[^a-z])/i, "");
    } while (open > 0);
    return text;
  }

  scripted({ made, isAround = false }) {
    let [below, above, primes] = ["", "", ""];
    for (this.skipSpace(); ["_", "^", "'", "\\limits", "\\nolimits"].includes(this.next); this.skipSpace()) {
      const token = this.take();
      if (token === "_" && !below) below = this.argument();
      else if (token === "^" && !above) above = this.argument();
      else if (token === "'") primes += "′";
      else if (token === "\\limits" || token === "\\nolimits") isAround = token === "\\limits";
      else throw new SyntaxError("two scripts of one kind");
    }
    if (primes) above = group(mo(primes) + above);
    if (below && above) return isAround ? `<munderover>${made}${below}${above}</munderover>` : `<msubsup>${made}${below}${above}</msubsup>`;
    if (below) return isAround ? `<munder>${made}${below}</munder>` : `<msub>${made}${below}</msub>`;
    if (above) return isAround ? `<mover>${made}${above}</mover>` : `<msup>${made}${above}</msup>`;
    return made;
  }

  atom() {
    const token = this.take();
    if (token === "{") {
      const made = group(this.row((next) => next === "}"));
      this.take();
      return { made };
    }
    if ("}&".includes(token)) throw new SyntaxError(`stray ${token}`);
    if (token === "^" || token === "_") return { made: this.unread(token, "<mi></mi>") };
    if (token === "~") return { made: '<mspace width="0.3em"></mspace>' };
    if (/^\d/.test(token)) return { made: `<mn>${token}</mn>` };
    if (token[0] === "\\" && token.length > 1) return this.command(token.slice(1));
    if (/\p{L}/u.test(token)) return { made: `<mi>${escaped(token)}</mi>` };
    if (token === "-") return { made: mo("−") };
    return { made: mo(token, /[()[\]|/]/.test(token) ? ' stretchy="false"' : "") };
  }

  unread(token, made) {
    this.tokens.unshift(token);
    return made;
  }

  command(name) {
    const own = (table) => (Object.hasOwn(table, name) ? table[name] : undefined);
    if (own(LETTERS)) return { made: `<mi>${own(LETTERS)}</mi>` };
    if (own(LARGE)) return { made: mo(own(LARGE), ' movablelimits="true"'), isAround: true };
    if (own(INTEGRALS)) return { made: mo(own(INTEGRALS)) };
    if (own(SIGNS)) return { made: mo(own(SIGNS), ' stretchy="false"') };
    if (own(SPACES) !== undefined) return { made: `<mspace width="${own(SPACES)}em"></mspace>` };
    if (LIMITS.has(name)) return { made: mo(name, ' movablelimits="true"'), isAround: true };
    if (FUNCTIONS.has(name)) return { made: `<mi>${name}</mi><mspace width="0.1em"></mspace>` };
    if (own(ABOVE)) return { made: `<mover accent="true">${this.argument()}${mo(own(ABOVE))}</mover>`, isAround: name === "overbrace" };
    if (own(BELOW)) return { made: `<munder>${this.argument()}${mo(own(BELOW))}</munder>`, isAround: name === "underbrace" };
    if (own(ALPHABETS)) return { made: `<mi>${escaped(inAlphabet(this.text(), own(ALPHABETS)))}</mi>` };
    if (UPRIGHT.has(name)) return this.upright(name);
    if (SIZES.test(name) || IGNORED.has(name)) return { made: "" };
    return this.structure(name);
  }

  upright(name) {
    const text = escaped(this.text());
    return { made: name.startsWith("text") || name === "mbox" ? `<mtext>${text.replace(/^ | $/g, "\u00a0")}</mtext>` : `<mi mathvariant="normal">${text}</mi>` };
  }

  structure(name) {
    if (/^[dtc]?frac$/.test(name)) return { made: `<mfrac>${this.argument()}${this.argument()}</mfrac>` };
    if (/^[dt]?binom$/.test(name)) return { made: group(`${mo("(")}<mfrac linethickness="0">${this.argument()}${this.argument()}</mfrac>${mo(")")}`) };
    if (name === "sqrt") return { made: this.root() };
    if (name === "left") return { made: this.fenced() };
    if (name === "middle") return { made: mo(this.delimiter()) };
    if (name === "begin") return { made: this.environment() };
    if (name === "substack") return { made: this.substack() };
    if (name === "overset" || name === "stackrel") return { made: this.swapped("mover") };
    if (name === "underset") return { made: this.swapped("munder"), isAround: true };
    if (name === "pmod") return { made: `${mo("(", ' stretchy="false"')}<mi>mod</mi><mspace width="0.3em"></mspace>${this.argument()}${mo(")", ' stretchy="false"')}` };
    if (name === "bmod" || name === "mod") return { made: mo("mod") };
    if (name === "not") return { made: this.argument().replace(/<\/mo>/, "\u0338</mo>") };
    if (name === "phantom") return { made: `<mphantom>${this.argument()}</mphantom>` };
    if (name === "boxed") return { made: this.argument() };
    if (name === "tag") return { made: `<mspace width="2em"></mspace><mtext>(${escaped(this.text())})</mtext>` };
    if (name === "label") return { made: (this.text(), "") };
    throw new SyntaxError(`\\${name} is not known`);
  }

  swapped(tag) {
    const [beside, base] = [this.argument(), this.argument()];
    return `<${tag}>${base}${beside}</${tag}>`;
  }

  root() {
    this.skipSpace();
    if (this.next !== "[") return `<msqrt>${this.argument()}</msqrt>`;
    this.take();
    const degree = group(this.row((next) => next === "]"));
    this.take();
    return `<mroot>${this.argument()}${degree}</mroot>`;
  }

  delimiter() {
    this.skipSpace();
    const token = this.take();
    if (token === ".") return "";
    if (token[0] !== "\\") return token;
    const sign = Object.hasOwn(SIGNS, token.slice(1)) && SIGNS[token.slice(1)];
    if (!sign) throw new SyntaxError(`${token} is not a delimiter`);
    return sign;
  }

  fenced() {
    const opening = this.delimiter();
    const content = this.row((next) => next === "\\right");
    this.take();
    const closing = this.delimiter();
    return group((opening && mo(opening, ' fence="true" stretchy="true"')) + group(content) + (closing && mo(closing, ' fence="true" stretchy="true"')));
  }

  substack() {
    this.skipSpace();
    if (this.take() !== "{") throw new SyntaxError("expected {");
    const made = this.table((next) => next === "}", "");
    this.take();
    return made;
  }

  environment() {
    const whole = this.text();
    const name = whole.replace(/\*$/, "");
    if (!Object.hasOwn(FENCES, name) && !ALIGNED.has(name)) throw new SyntaxError(`${name} is not known`);
    if (name === "array" || name === "alignat") this.text(); // how its columns are aligned
    const align = name === "cases" ? "left" : ALIGNED.has(name) && name !== "gather" ? "alternate" : "";
    const made = this.table((next) => next === "\\end", align);
    this.take();
    if (this.text() !== whole) throw new SyntaxError("environments overlap");
    const [opening = "", closing = ""] = FENCES[name] ?? "";
    return opening ? group(mo(opening, ' fence="true" stretchy="true"') + made + (closing && mo(closing, ' fence="true" stretchy="true"'))) : made;
  }

  /** Rows and columns. Chromium ignores `columnalign`: `frame.css` aligns the cells that have it. */
  table(isEnd, align) {
    const rows = [[]];
    const isBreak = (next) => next === "\\\\" || next === "&" || isEnd(next);
    for (;;) {
      const column = rows.at(-1).length;
      const side = align === "alternate" ? (column % 2 ? "left" : "right") : align;
      rows.at(-1).push(`<mtd${side && ` columnalign="${side}"`}>${this.row(isBreak)}</mtd>`);
      if (this.next === undefined) throw new SyntaxError("the formula ends too early");
      if (isEnd(this.next)) break;
      if (this.take() === "\\\\") rows.push([]);
    }
    if (rows.length > 1 && rows.at(-1).join("").replace(/<[^>]*>/g, "") === "") rows.pop();
    const attributes = align ? ' displaystyle="true"' : "";
    return `<mtable${attributes}>${rows.map((cells) => `<mtr>${cells.join("")}</mtr>`).join("")}</mtable>`;
  }
}

function inAlphabet(text, base) {
  return text.replace(/[A-Za-z]/g, (letter) => {
    const place = letter.charCodeAt(0) - (letter < "a" ? 65 : 71);
    return ELSEWHERE[base]?.[letter] ?? String.fromCodePoint(base + place);
  });
}
