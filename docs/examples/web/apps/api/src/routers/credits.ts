/**
 * A tRPC router over gRPC, for an app whose own API talks to the credit service directly.
 *
 * The user is always the one of the session (`ctx.userId`), never a field of the input.
 */
import {
  credentials,
  loadPackageDefinition,
  Metadata,
  status,
  type ClientReadableStream,
  type ServiceError,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { initTRPC, TRPCError } from "@trpc/server";
import protobuf from "protobufjs";
import { z } from "zod";

export interface Context {
  readonly userId: string | null;
}

/** A refusal of the service: its reason and its figures, for the page. */
export class CreditRefusal extends Error {
  constructor(
    message: string,
    readonly reason: string,
    readonly figures: Readonly<Record<string, string>>,
  ) {
    super(message);
  }
}

// The standard error model: google.rpc.Status holds a google.rpc.ErrorInfo packed in an Any.
const MODEL = `
  syntax = "proto3";
  message Packed { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Packed details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
`;
const model = protobuf.parse(MODEL, { keepCase: true }).root;
const Status = model.lookupType("Status");
const ErrorInfo = model.lookupType("ErrorInfo");

const CODES: Partial<Record<status, TRPCError["code"]>> = {
  [status.INVALID_ARGUMENT]: "BAD_REQUEST",
  [status.NOT_FOUND]: "NOT_FOUND",
  [status.ALREADY_EXISTS]: "CONFLICT",
  // tRPC has no code for 402; `data.reason` says INSUFFICIENT_CREDITS.
  [status.FAILED_PRECONDITION]: "PRECONDITION_FAILED",
  [status.RESOURCE_EXHAUSTED]: "TOO_MANY_REQUESTS",
  [status.UNAVAILABLE]: "SERVICE_UNAVAILABLE",
  [status.DEADLINE_EXCEEDED]: "TIMEOUT",
};

function asTrpc(error: ServiceError): TRPCError {
  const code = CODES[error.code] ?? "INTERNAL_SERVER_ERROR";
  const [sent] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (sent instanceof Uint8Array) {
    const { details } = Status.decode(sent).toJSON() as {
      details?: { type_url: string; value: string }[];
    };
    const packed = details?.find(({ type_url }) => type_url.endsWith("/google.rpc.ErrorInfo"));
    if (packed) {
      const info = ErrorInfo.decode(Buffer.from(packed.value, "base64")).toJSON() as {
        reason: string;
        metadata?: Record<string, string>;
      };
      const cause = new CreditRefusal(error.details, info.reason, info.metadata ?? {});
      return new TRPCError({ code, message: error.details, cause });
    }
  }
  return new TRPCError({ code, message: "The credit service does not answer." });
}

export interface Account {
  readonly balance: number;
  readonly held: number;
  readonly available: number;
  readonly min_balance: number;
  readonly frozen: boolean;
  readonly seq: number;
}

export interface Entry {
  readonly id: string;
  readonly type: string;
  readonly balance_change: number;
  readonly balance_after: number;
  readonly operation: string;
  readonly description: string;
}

export interface Quote {
  readonly total: number;
  readonly affordable: boolean;
  readonly shortfall: number;
  readonly price_version: string;
}

export interface CreditService {
  getUserCredit(request: { user_id: string }): Promise<{ credit: Account }>;
  quoteCost(request: { user_id: string; items: readonly object[] }): Promise<Quote>;
  getTransactionHistory(request: object): Promise<{
    transactions: readonly Entry[];
    next_page_token: string;
  }>;
  holdCredits(request: object): Promise<{ hold: { id: string; state: string } }>;
  watchUserCredit(request: { user_id: string }): ClientReadableStream<{ credit: Account }>;
  close(): void;
}

/** Connects to the service. Amounts are whole numbers below 2^53, which a number holds exactly. */
export function connect(target: string, protos: string, token?: string): CreditService {
  const definition = loadSync("credit_service/v1/credit_service.proto", {
    includeDirs: [protos],
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
  });
  // The loaded package has no types of its own; the interface above gives it some.
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  const loaded = loadPackageDefinition(definition) as any;
  const client = new loaded.credit_service.v1.CreditService(target, credentials.createInsecure());
  const metadata = new Metadata();
  if (token) metadata.set("authorization", `Bearer ${token}`);
  const unary = (method: string) => (request: object) =>
    new Promise<never>((resolve, reject) => {
      const options = { deadline: Date.now() + 5000 };
      client[method](request, metadata, options, (error: ServiceError | null, answer: never) =>
        error ? reject(asTrpc(error)) : resolve(answer),
      );
    });
  return {
    getUserCredit: unary("GetUserCredit"),
    quoteCost: unary("QuoteCost"),
    getTransactionHistory: unary("GetTransactionHistory"),
    holdCredits: unary("HoldCredits"),
    watchUserCredit: (request) => client.WatchUserCredit(request, metadata),
    close: () => client.close(),
  };
}

const t = initTRPC.context<Context>().create({
  errorFormatter: ({ shape, error }) => ({
    ...shape,
    data: {
      ...shape.data,
      ...(error.cause instanceof CreditRefusal
        ? { reason: error.cause.reason, figures: error.cause.figures }
        : {}),
    },
  }),
});

const signedIn = t.procedure.use(({ ctx, next }) => {
  if (!ctx.userId) {
    throw new TRPCError({ code: "UNAUTHORIZED" });
  }
  return next({ ctx: { userId: ctx.userId } });
});

const items = z
  .array(z.object({ operation: z.string().min(1), quantity: z.number().int().min(1).default(1) }))
  .min(1)
  .max(50);

export function creditsRouter(service: CreditService) {
  return t.router({
    account: signedIn.query(async ({ ctx }) => {
      const { credit } = await service.getUserCredit({ user_id: ctx.userId });
      const spendable = credit.frozen ? 0 : Math.max(0, credit.available - credit.min_balance);
      return { ...credit, spendable };
    }),

    quote: signedIn.input(z.object({ items })).query(({ ctx, input }) =>
      service.quoteCost({ user_id: ctx.userId, items: input.items }),
    ),

    history: signedIn
      .input(z.object({ cursor: z.string().default(""), limit: z.number().int().min(1).max(100).default(20) }))
      .query(async ({ ctx, input }) => {
        const page = await service.getTransactionHistory({
          user_id: ctx.userId,
          page_size: input.limit,
          page_token: input.cursor,
        });
        return { items: page.transactions, nextCursor: page.next_page_token || null };
      }),

    /** Holds the credits of a job at the price that the user saw; a worker captures the hold. */
    startJob: signedIn
      .input(
        z.object({
          job: z.string().regex(/^[\w-]{1,64}$/),
          operation: z.string().min(1),
          quantity: z.number().int().min(1).default(1),
          expectedCost: z.number().int().min(0),
        }),
      )
      .mutation(async ({ ctx, input }) => {
        const { hold } = await service.holdCredits({
          user_id: ctx.userId,
          charge: { operation: input.operation, quantity: input.quantity },
          expected_cost: input.expectedCost,
          // The key that `client.hold(job=...)` of a Python worker uses, so it continues this hold.
          idempotency_key: `hold:${input.job}:1`,
          reference: input.job,
        });
        return { hold: hold.id };
      }),

    /** The account, and again after each change. */
    onCredit: signedIn.subscription(async function* ({ ctx, signal }) {
      const stream = service.watchUserCredit({ user_id: ctx.userId });
      signal?.addEventListener("abort", () => stream.cancel());
      try {
        for await (const { credit } of stream as AsyncIterable<{ credit: Account }>) {
          yield credit;
        }
      } catch (error) {
        if (!signal?.aborted) throw asTrpc(error as ServiceError);
      }
    }),
  });
}

export type CreditsRouter = ReturnType<typeof creditsRouter>;
