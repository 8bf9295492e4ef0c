package egress_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpctls "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"bottle/bottle"
	"bottle/bottle/egress"
)

const echoService = "/test.Echo/"

// echoServer is a gRPC server without generated code: Unary says its word twice, fails if it
// has none, and Bidi answers each message as it comes.
func (w *world) echoServer(host string) {
	type word = wrapperspb.StringValue
	desc := grpc.ServiceDesc{
		ServiceName: "test.Echo", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(word)
			if err := decode(in); err != nil {
				return nil, err
			}
			if in.Value == "" {
				return nil, status.Error(codes.InvalidArgument, "no word")
			}
			if md, _ := metadata.FromIncomingContext(ctx); len(md["authorization"]) > 0 {
				_ = grpc.SetHeader(ctx, metadata.Pairs("x-had", md["authorization"][0]))
			}
			_ = grpc.SetTrailer(ctx, metadata.Pairs("x-sum", "2"))
			return wrapperspb.String(in.Value + in.Value), nil
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Bidi", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			for {
				in := new(word)
				if err := s.RecvMsg(in); err != nil {
					if err == io.EOF { //nolint:errorlint // grpc says so
						s.SetTrailer(metadata.Pairs("x-end", "yes"))
						return nil
					}
					return err
				}
				if err := s.SendMsg(wrapperspb.String("re: " + in.Value)); err != nil {
					return err
				}
			}
		}}},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a test's listener
	if err != nil {
		w.t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(grpctls.NewServerTLSFromCert(ptr(w.ca.leaf(w.t, host)))))
	s.RegisterService(&desc, struct{}{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	w.t.Cleanup(func() {
		s.Stop()
		<-done
	})
	w.gate.route(host+":443", l.Addr().String())
}

func ptr[T any](v T) *T { return &v }

// grpcAgent is a gRPC client whose connections go through the proxy.
func (w *world) grpcAgent(host string) *grpc.ClientConn {
	c, err := grpc.NewClient("passthrough:///"+host+":443",
		grpc.WithTransportCredentials(grpctls.NewTLS(&tls.Config{RootCAs: w.roots, ServerName: host})),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			c, _ := w.tunnel(host + ":443")
			return c, c.SetDeadline(time.Time{})
		}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestGRPC(t *testing.T) {
	route := bottle.Route{Host: "grpc.example.com", Matches: []bottle.Match{{Method: "POST", Path: &bottle.PathMatch{Type: bottle.PathPrefix, Value: "/test.Echo"}}}}
	keyed := whole("api.example.com")
	keyed.Credential = "example"
	w := newWorld(t, []bottle.Route{route, keyed}, withCredentials(credentials()))
	if err := egress.HandKeys(t.Context(), w.init.socket, map[string]string{"example": secret}); err != nil {
		t.Fatal(err)
	}
	w.echoServer("grpc.example.com")
	w.echoServer("api.example.com")
	c := w.grpcAgent("grpc.example.com")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out := new(wrapperspb.StringValue)
	call := func(c *grpc.ClientConn, method, in string, o ...grpc.CallOption) error {
		return c.Invoke(ctx, method, wrapperspb.String(in), out, o...)
	}
	t.Run("unary", func(t *testing.T) {
		var trailer metadata.MD
		if err := call(c, echoService+"Unary", "ab", grpc.Trailer(&trailer)); err != nil || out.Value != "abab" || len(trailer["x-sum"]) != 1 {
			t.Errorf("%v %q %v", err, out.Value, trailer)
		}
	})
	t.Run("an error, which is trailers alone", func(t *testing.T) {
		for range 50 { // it is a race with the flush of the head, if at all
			if err := call(c, echoService+"Unary", ""); status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != "no word" {
				t.Fatal(err)
			}
		}
	})
	t.Run("a refusal", func(t *testing.T) {
		if err := call(c, "/test.Other/Unary", "ab"); status.Code(err) != codes.PermissionDenied {
			t.Error(err)
		}
	})
	t.Run("a credential", func(t *testing.T) {
		var header metadata.MD
		if err := call(w.grpcAgent("api.example.com"), echoService+"Unary", "ab", grpc.Header(&header)); err != nil || out.Value != "abab" {
			t.Fatal(err)
		}
		if had := header["x-had"]; len(had) != 1 || len(had[0]) != len("Bearer "+secret) || had[0] == "Bearer "+secret {
			t.Errorf("the echo came back as %q", had)
		}
	})
	t.Run("streams, until revoked", func(t *testing.T) {
		open := func() grpc.ClientStream {
			s, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, echoService+"Bidi")
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"one", "two"} {
				if err := s.SendMsg(wrapperspb.String(word)); err != nil {
					t.Fatal(err)
				}
				if err := s.RecvMsg(out); err != nil || out.Value != "re: "+word {
					t.Fatalf("%v %q", err, out.Value)
				}
			}
			return s
		}
		s := open()
		if err := s.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(out); err != io.EOF || len(s.Trailer()["x-end"]) != 1 { //nolint:errorlint // grpc says so
			t.Errorf("%v, trailer %v", err, s.Trailer())
		}
		s = open()
		w.setRoutes([]bottle.Route{keyed})
		if err := s.RecvMsg(out); status.Code(err) != codes.Internal {
			t.Errorf("a revoked stream: %v", err)
		}
	})
	if n := len(w.gate.targets()); n != 2 {
		t.Errorf("%d connections upstream: %v", n, w.gate.targets())
	}
}
